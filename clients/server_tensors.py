"""Server tensors that were sent to this machine, shared by all clients on it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedlab.storage.runfolder import write_atomic

_KEPT_VERSIONS = 2  # a worker that is one round behind may still want the one before


class ReceivedTensors:
    """One small file per tensor and version; the version used last stays in memory.

    A thousand simulated clients of one machine hold one copy, as they would hold a thousand in the field.

    Args:
        root: folder; created when first written to.
        device: where tensors are handed out.
    """

    def __init__(self, root: Path, device: torch.device | str = "cpu") -> None:
        self._root, self._device = root, device
        self._ready: dict[str, tuple[int, Tensor]] = {}

    def put(self, name: str, version: int, values: np.ndarray) -> None:
        """Keep a tensor; nothing happens where it is held already."""
        path = self._path(name, version)
        if path.exists():
            return
        tensor = torch.from_numpy(np.array(values))  # the sender's memory may be read-only or used again
        write_atomic(path, safetensors.torch.save({"value": tensor}), durable=False)
        versions = sorted(int(p.stem) for p in path.parent.glob("*.safetensors") if p.stem.isdigit())
        for old in versions[:-_KEPT_VERSIONS]:
            self._path(name, old).unlink(missing_ok=True)

    def get(self, name: str, version: int) -> Tensor | None:
        """The tensor at that very version, None where this machine has not got it or its file is damaged."""
        ready = self._ready.get(name)
        if ready is None or ready[0] != version:
            try:
                tensor = safetensors.torch.load(self._path(name, version).read_bytes())["value"]
            except (OSError, SafetensorError, KeyError):
                self._path(name, version).unlink(missing_ok=True)
                return None
            ready = self._ready[name] = version, tensor.to(self._device)
        return ready[1]

    def _path(self, name: str, version: int) -> Path:
        # names hold dots and slashes
        folder = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        return self._root / folder / f"{version:06d}.safetensors"
