"""Checkpoints: a folder with tensors as safetensors and facts as JSON, which counts only if it is complete.

Tensors that stay as they are from one checkpoint to the next, such as those of a large frozen network, lie in a file of
their own beside the folders, which is named by its hash and written once.
"""

from __future__ import annotations

import hashlib
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
from fedlab.storage.plain import read_plain, read_plain_text
from fedlab.storage.runfolder import set_aside, write_atomic
from fedlab.storage.unusable import warn_once

NETWORK = "network/"
"""Prefix that tells network state from other tensors of the same record or file."""
START = "start/"
"""Prefix of the values from which network state starts that stays on the client from now on."""
_TENSORS, _META, _LASTING = "tensors.safetensors", "checkpoint.json", "lasting_{}.safetensors"
_SUM = "checkpoint.sha256"  # as sha256sum writes and checks it
FORMAT = 4
_WITHOUT_SUM = (2, 3)


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    lasting: Container[str] = (),
    copies: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint folder, and return its path.

    The JSON file is written last and holds the hash of the tensors; its own hash lies beside it. A checkpoint without
    these files, or with another hash, does not count.

    Args:
        path: the checkpoint's own folder; it is replaced if it exists.
        tensors: tensors by name, on any device.
        meta: facts that can be serialized as JSON.
        lasting: names of tensors that are not expected to change between checkpoints.
        copies: names of further tensors, which are not written because they equal one in `tensors`, whose name is the
            value.
    """
    if path.is_dir():
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
    facts = json.dumps(described, indent=1, sort_keys=True)
    write_atomic(path / _SUM, f"{hashlib.sha256(facts.encode()).hexdigest()}  {_META}\n")
    write_atomic(path / _META, facts)
    return path


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, on the CPU, and its facts. It lies in the folder ``checkpoints`` of a run.

    Raises:
        CheckpointError: it is missing, incomplete, damaged or of another format.
    """
    key = "checkpoint"
    meta = _facts(path)
    lasting = meta.get("lasting")
    beside = path.parent / _LASTING.format(lasting)
    try:
        raw = read_plain(path / _TENSORS)
        kept = read_plain(beside) if lasting else b""
    except OSError as error:
        raise CheckpointError(key, str(path), _WHOLE, f"{_EARLIER} ({error})") from error
    hashed = [(path, raw, meta.get("sha256")), *([(beside, kept, lasting)] if lasting else [])]
    for file, found, wanted in hashed:
        if hashlib.sha256(found).hexdigest() != wanted:
            raise CheckpointError(key, str(file), "tensors with the recorded hash", _CHANGED)
    try:
        tensors = {**safetensors.torch.load(raw), **(safetensors.torch.load(kept) if lasting else {})}
        tensors |= {name: tensors[other] for name, other in meta.get("copies", {}).items()}
    except SafetensorError as error:
        raise CheckpointError(key, str(path), "a safetensors file", f"{_EARLIER} ({error})") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(key, str(path), "facts that fit its tensors", _CHANGED) from error
    return renamed.checkpoint(tensors, meta, path.absolute().parent.parent)


_WHOLE, _EARLIER = "a complete checkpoint folder", "use an earlier one"
_CHANGED = "the file is incomplete or was changed: use an earlier checkpoint"


def _facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint, which have the hash that lies beside them.

    Earlier versions of FedLab wrote no hash of the facts; theirs are believed.

    Raises:
        CheckpointError: they are missing, incomplete or damaged, or of another format.
    """
    key = "checkpoint"
    try:
        text = read_plain_text(path / _META)
        meta = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(key, str(path), _WHOLE, f"{_EARLIER} ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") not in (*_WITHOUT_SUM, FORMAT):
        raise CheckpointError(key, str(path), f"format {FORMAT}", "it was written by another version of FedLab")
    if meta["format"] in _WITHOUT_SUM and not (path / _SUM).exists():
        return meta
    try:
        wanted = read_plain_text(path / _SUM).split()[:1]
    except (OSError, ValueError) as error:
        raise CheckpointError(key, str(path), _WHOLE, f"{_EARLIER} ({error})") from error
    if wanted != [hashlib.sha256(text.encode()).hexdigest()]:
        raise CheckpointError(key, str(path / _META), "facts with the recorded hash", _CHANGED)
    return meta


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, CheckpointError]]:
    """Find the newest checkpoint of a run that is complete and has the right hash.

    Args:
        folder: the run's folder ``checkpoints``.

    Returns:
        The checkpoint, or None if there is none; and why the newer ones cannot be used, the newest first.
    """
    unusable: dict[Path, CheckpointError] = {}
    for path in by_round(folder):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            unusable[path] = error
        else:
            return path, unusable
    return None, unusable


def by_round(folder: Path) -> list[Path]:
    """The checkpoints of a run, whether they can be used or not, the newest first."""
    found = {path: path.name.removeprefix("round_") for path in folder.glob("round_*")}
    return sorted((path for path, number in found.items() if number.isdecimal()), reverse=True)


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
    for path in by_round(folder):
        if int(path.name.removeprefix("round_")) <= round:
            continue
        if is_damaged(path) or not path.is_dir():
            set_aside(path)
        else:
            shutil.rmtree(path)
    named = "".join(read_plain(meta).decode(errors="replace") for meta in folder.glob(f"*/{_META}") if meta.is_file())
    for path in folder.glob(_LASTING.format("*")):
        if path.stem.rpartition("_")[2] not in named:
            path.unlink()
