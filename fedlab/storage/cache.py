"""Results that outlive a run: warm-up images, teachers trained once, whatever is a function of data and settings."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedlab.errors import DiskFullError
from fedlab.storage.runfolder import write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResultCache:
    """Tensors on disk by what they are a function of.

    Args:
        folder: where they lie.
        data: makes the fingerprint of the data they are computed from.
        seed: the run's seed.
        device: where they are computed.
        keep: whether new results are written.
    """

    folder: Path
    data: Callable[[], str]
    seed: int
    device: torch.device
    keep: bool = True

    def get(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]], *, seeded: bool = True
    ) -> dict[str, Tensor]:
        """`compute()`, or its result from an earlier run; on the CPU.

        Args:
            name: what is computed, a folder's name.
            key: JSON-able settings the result depends on beside data, seed and machine.
            compute: makes the tensors; its result is used until FedLab or a Python file beside its own changes.
            seeded: whether the result depends on the run's seed.
        """
        # the machine's kernels are part of a result's bits, so a cache is never shared between torch builds
        identity = {
            "name": name,
            "data": self.data(),
            "seed": self.seed if seeded else None,
            "key": dict(key),
            "code": _sources(_home(compute)),
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "device": self.device.type,
        }
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
        path = self.folder / name / f"{digest}.safetensors"
        held = _read(path)
        if held is not None:
            return held
        result = {part: value.detach().cpu().contiguous() for part, value in compute().items()}
        if self.keep:
            try:
                write_atomic(path, safetensors.torch.save(result), durable=False)
            except (OSError, DiskFullError) as error:  # what a cache cannot keep is computed again
                log.warning("the cache keeps nothing of %s: %s", name, str(error).splitlines()[0])
        return result


def _read(path: Path) -> dict[str, Tensor] | None:
    """What is kept there; None where there is nothing, or nothing that can be read."""
    try:
        return safetensors.torch.load(path.read_bytes()) if path.exists() else None
    except SafetensorError:  # torn by a full disk
        with suppress(OSError):
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the cache cannot be read: %s", error)
    return None


def _home(compute: Callable[..., Any]) -> Path:
    """Folder of the file in which a function, method, partial or callable object is written."""
    while isinstance(compute, partial):
        compute = compute.func
    written: Any = compute if hasattr(compute, "__code__") else type(compute).__call__
    return Path(written.__code__.co_filename).resolve().parent


@cache
def code_fingerprint() -> str:
    """Hash of FedLab's own Python files: runs of equal configurations and data may differ where it does."""
    files: dict[str, Path] = {}
    for package in ("fedlab", "fedlab.clients", "fedlab.server", "fedlab.methods"):  # apart in an editable install
        found = importlib.util.find_spec(package)
        for root in map(Path, (found.submodule_search_locations or ()) if found else ()):
            files |= {f"{package.replace('.', '/')}/{p.relative_to(root).as_posix()}": p for p in root.rglob("*.py")}
    digest = hashlib.blake2b(digest_size=16)
    for name, path in sorted(files.items()):
        digest.update(f"{name}:".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def _sources(folder: Path) -> str:
    """Hash of the code a result depends on: all of FedLab's own, and the Python files of `folder`."""
    digest = hashlib.blake2b(digest_size=16)
    own = Path(__file__).resolve().parents[1].rglob("*.py")
    for path in sorted({*own, *folder.glob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()
