"""A cache of results that several runs can use, such as warm-up images or a trained teacher.

A result may be kept if it depends on nothing but the data, the settings and FedLab's code.
"""

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

import torch
from torch import Tensor

from fedlab.errors import DiskFullError
from fedlab.storage.names import file_name
from fedlab.storage.plain import read_plain
from fedlab.storage.runfolder import write_atomic
from fedlab.storage.sealed import DamagedFileError, sealed, unsealed
from fedlab.storage.temporary import sweep_cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResultCache:
    """Tensors on disk, found by everything that they depend on.

    Args:
        folder: the folder of the cache.
        data: returns the fingerprint of the data that results are computed from.
        seed: the run's seed.
        device: the device that results are computed on.
        keep: whether new results are written to disk.
        private: whether only this user may read them, because they are made of a client's samples.
    """

    folder: Path
    data: Callable[[], str]
    seed: int
    device: torch.device
    keep: bool = True
    private: bool = False

    def get(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]], *, seeded: bool = True
    ) -> dict[str, Tensor]:
        """The result of `compute`, from an earlier run if there is one. The tensors are on the CPU.

        Args:
            name: what is computed; it is the name of a folder.
            key: settings that the result depends on, beside data, seed and machine; they must be serializable as JSON.
            compute: returns the tensors. An earlier result is no longer used once FedLab's code has changed, or a
                Python file in the folder in which `compute` is defined.
            seeded: whether the result depends on the run's seed.
        """
        # the bits of a result depend on the kernels that computed it, so builds of torch do not share results
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
        path = self.folder / file_name(name) / f"{digest}.safetensors"
        held = _read(path, name)
        if held is not None:
            return held
        result = {part: value.detach().cpu().contiguous() for part, value in compute().items()}
        if self.keep:
            sweep_cache(self.folder)
            try:
                write_atomic(path, sealed(result), durable=False, private=self.private)
            except (OSError, DiskFullError) as error:  # what is not kept is computed again by the next run
                log.warning("the cache keeps nothing of %s: %s", name, str(error).splitlines()[0])
        return result


def _read(path: Path, name: str) -> dict[str, Tensor] | None:
    """The tensors of a file; None if it does not exist or cannot be used."""
    try:
        return unsealed(read_plain(path)) if path.exists() else None
    except DamagedFileError as error:  # the disk was full while it was written, or is failing
        log.warning("a kept result of %s is computed again: %s: %s", name, path, error)
        with suppress(OSError):
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the cache cannot be read: %s", error)
    return None


def _home(compute: Callable[..., Any]) -> Path:
    """The folder of the file in which a function, method, partial or callable object is defined.

    Of a function that wraps another one, as `functools.wraps` says, it is that of the other one.
    """
    while inner := compute.func if isinstance(compute, partial) else getattr(compute, "__wrapped__", None):
        compute = inner
    written: Any = compute if hasattr(compute, "__code__") else type(compute).__call__
    return Path(written.__code__.co_filename).resolve().parent


@cache
def code_fingerprint() -> str:
    """Hash of FedLab's own Python files. Runs with equal configurations and data may differ if it does."""
    files: dict[str, Path] = {}
    # in an editable install these lie apart
    for package in ("fedlab", "fedlab.clients", "fedlab.server", "fedlab.methods"):
        found = importlib.util.find_spec(package)
        for root in map(Path, (found.submodule_search_locations or ()) if found else ()):
            files |= {f"{package.replace('.', '/')}/{p.relative_to(root).as_posix()}": p for p in root.rglob("*.py")}
    digest = hashlib.blake2b(digest_size=16)
    for name, path in sorted(files.items()):
        digest.update(f"{name}:".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def _sources(folder: Path) -> str:
    """Hash of the code that a result depends on: all of FedLab's, and the Python files of `folder`."""
    digest = hashlib.blake2b(digest_size=16)
    own = Path(__file__).resolve().parents[1].rglob("*.py")
    for path in sorted({*own, *folder.glob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()
