"""Checkpoints: a folder with tensors as safetensors and facts as JSON, which counts only if it is complete.

Tensors that stay as they are from one checkpoint to the next, such as those of a large frozen network, lie in a file of
their own beside the folders, which is named by its hash and written once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Container, Mapping
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
_TENSORS, _META, _LASTING = "tensors.safetensors", "checkpoint.json", "lasting_{}.safetensors"
FORMAT = 3
_READABLE = (2, FORMAT)


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    lasting: Container[str] = (),
    copies: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint folder, and return its path.

    The JSON file is written last and holds the hash of the tensors. A checkpoint without that file, or with tensors of
    another hash, does not count.

    Args:
        path: the checkpoint's own folder; it is replaced if it exists.
        tensors: tensors by name, on any device.
        meta: facts that can be serialized as JSON.
        lasting: names of tensors that are not expected to change between checkpoints.
        copies: names of further tensors, which are not written because they equal one in `tensors`, whose name is the
            value.
    """
    if path.exists():
        shutil.rmtree(path)
    raw = _packed({name: value for name, value in tensors.items() if name not in lasting})
    write_atomic(path / _TENSORS, raw)
    described: dict[str, Any] = {"format": FORMAT, "sha256": hashlib.sha256(raw).hexdigest(), **meta}
    if kept := {name: value for name, value in tensors.items() if name in lasting}:
        raw = _packed(kept)
        described["lasting"] = hashlib.sha256(raw).hexdigest()
        beside = path.parent / _LASTING.format(described["lasting"])
        if not beside.is_file() or beside.stat().st_size != len(raw):
            write_atomic(beside, raw)
    if copies:
        described["copies"] = dict(copies)
    write_atomic(path / _META, json.dumps(described, indent=1, sort_keys=True))
    return path


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, on the CPU, and its facts. It lies in the folder ``checkpoints`` of a run.

    Raises:
        CheckpointError: it is missing, incomplete, damaged or of another format.
    """
    key = "checkpoint"
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        raw = (path / _TENSORS).read_bytes()
        lasting = meta.get("lasting") if isinstance(meta, dict) else None
        beside = path.parent / _LASTING.format(lasting)
        kept = beside.read_bytes() if lasting else b""
    except (OSError, ValueError) as error:
        raise CheckpointError(
            key, str(path), "a complete checkpoint folder", f"use an earlier one ({error})"
        ) from error
    if not isinstance(meta, dict) or meta.get("format") not in _READABLE:
        raise CheckpointError(key, str(path), f"format {FORMAT}", "it was written by another version of FedLab")
    hashed = [(path, raw, meta.get("sha256")), *([(beside, kept, lasting)] if lasting else [])]
    for file, found, wanted in hashed:
        if hashlib.sha256(found).hexdigest() != wanted:
            raise CheckpointError(
                key,
                str(file),
                "tensors with the recorded hash",
                "the file is incomplete or was changed: use an earlier checkpoint",
            )
    try:
        tensors = {**safetensors.torch.load(raw), **(safetensors.torch.load(kept) if lasting else {})}
    except SafetensorError as error:
        raise CheckpointError(key, str(path), "a safetensors file", f"use an earlier checkpoint ({error})") from error
    tensors |= {name: tensors[other] for name, other in meta.get("copies", {}).items()}
    return renamed.checkpoint(tensors, meta, path.absolute().parent.parent)


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
    named = "".join(meta.read_text(encoding="utf-8", errors="replace") for meta in folder.glob(f"*/{_META}"))
    for path in folder.glob(_LASTING.format("*")):
        if path.stem.rpartition("_")[2] not in named:
            path.unlink()


def _free(path: Path) -> Path:
    """The path, or where it is taken the first one with a number that is not."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not place.exists())
