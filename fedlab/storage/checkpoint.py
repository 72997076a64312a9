"""Checkpoints: a folder with tensors as safetensors and facts as JSON, which counts only if it is complete."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedlab.errors import CheckpointError
from fedlab.storage import renamed
from fedlab.storage.runfolder import write_atomic
from fedlab.storage.unusable import warn_once

NETWORK = "network/"
"""Prefix that tells network state from other tensors of the same record or file."""
START = "start/"
"""Prefix of the values from which network state starts that stays on the client from now on."""
_TENSORS, _META = "tensors.safetensors", "checkpoint.json"
FORMAT = 2


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write a checkpoint folder, and return its path.

    The JSON file is written last and holds the hash of the tensors. A checkpoint without that file, or with tensors of
    another hash, does not count.

    Args:
        path: the checkpoint's own folder; it is replaced if it exists.
        tensors: tensors by name, on any device.
        meta: facts that can be serialized as JSON.
    """
    if path.exists():
        shutil.rmtree(path)
    raw = safetensors.torch.save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
    write_atomic(path / _TENSORS, raw)
    described = {"format": FORMAT, "sha256": hashlib.sha256(raw).hexdigest(), **meta}
    write_atomic(path / _META, json.dumps(described, indent=1, sort_keys=True))
    return path


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, on the CPU, and its facts. It lies in the folder ``checkpoints`` of a run.

    Raises:
        CheckpointError: it is missing, incomplete, damaged or of another format.
    """
    key = "checkpoint"
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        raw = (path / _TENSORS).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            key, str(path), "a complete checkpoint folder", f"use an earlier one ({error})"
        ) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(key, str(path), f"format {FORMAT}", "it was written by another version of FedLab")
    if hashlib.sha256(raw).hexdigest() != meta.get("sha256"):
        raise CheckpointError(
            key,
            str(path),
            "tensors with the recorded hash",
            "the file is incomplete or was changed: use an earlier checkpoint",
        )
    try:
        return renamed.checkpoint(safetensors.torch.load(raw), meta, path.absolute().parent.parent)
    except SafetensorError as error:
        raise CheckpointError(key, str(path), "a safetensors file", f"use an earlier checkpoint ({error})") from error


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, CheckpointError]]:
    """Find the newest checkpoint of a run that is complete and has the right hash.

    Args:
        folder: the run's folder ``checkpoints``.

    Returns:
        The checkpoint, or None if there is none; and why the newer ones cannot be used, the newest first.
    """
    unusable: dict[Path, CheckpointError] = {}
    for path in sorted(folder.glob("round_*"), reverse=True):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            unusable[path] = error
        else:
            return path, unusable
    return None, unusable


def is_damaged(path: Path) -> bool:
    """Whether a checkpoint that cannot be used was complete once; otherwise its run was killed while it wrote it."""
    return (path / _META).exists()


def latest_checkpoint(folder: Path) -> Path | None:
    """The path that `newest_checkpoint` finds. Newer ones that are damaged are logged, once in this process."""
    found, unusable = newest_checkpoint(folder)
    for path, error in unusable.items():
        if is_damaged(path):
            warn_once(f"a checkpoint is not used: {error}")
    return found


def keep_until(folder: Path, round: int) -> None:
    """Remove the checkpoints after a round, because these rounds are about to be repeated.

    What is damaged cannot be made again, so it is renamed and kept.

    Args:
        folder: the run's folder ``checkpoints``.
        round: the last round of which a checkpoint stays.
    """
    for path in folder.glob("round_*"):
        if int(path.name.removeprefix("round_")) <= round:
            continue
        if is_damaged(path):
            path.rename(_free(path.with_name(f"damaged_{path.name}")))
        else:
            shutil.rmtree(path)


def _free(path: Path) -> Path:
    """The path, or where it is taken the first one with a number that is not."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not place.exists())
