"""Tensors of the server that were sent to this machine. All clients on it share them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlab.errors import FedLabError
from fedlab.storage.plain import read_plain
from fedlab.storage.runfolder import write_atomic
from fedlab.storage.sealed import DamagedFileError, sealed, unsealed

log = logging.getLogger(__name__)

_KEPT_VERSIONS = 2  # a worker that is one round behind may still need the previous version


class ReceivedTensors:
    """A store with one small file for each tensor and version. The version of a tensor used last stays in memory.

    All simulated clients on a machine share one copy. In a deployment, each client has its own.

    Args:
        root: folder of the files; it is created when the first file is written.
        device: device of the tensors that `get` returns.
    """

    def __init__(self, root: Path, device: torch.device | str = "cpu") -> None:
        self._root, self._device = root, device
        self._ready: dict[str, tuple[int, Tensor]] = {}

    def put(self, name: str, version: int, values: np.ndarray, *, replace: bool = False) -> None:
        """Save a version of a tensor. All versions but the last two are deleted.

        Args:
            name: name of the tensor.
            version: its version.
            values: the tensor.
            replace: whether to write the file even if it exists. Clients on one machine are sent the same tensor, which
                need not be written for each. A run that is resumed counts its versions again from its checkpoint, so a
                file that was left behind may hold another tensor.
        """
        path = self._path(name, version)
        if path.exists() and not replace:
            return
        if replace:
            self._ready.pop(name, None)
        tensor = torch.from_numpy(np.array(values))  # a copy, because the sender's memory may be read-only or reused
        write_atomic(path, sealed({"value": tensor}), durable=False)
        versions = sorted(int(p.stem) for p in path.parent.glob("*.safetensors") if p.stem.isdigit())
        for old in versions[:-_KEPT_VERSIONS]:
            self._path(name, old).unlink(missing_ok=True)

    def get(self, name: str, version: int) -> Tensor | None:
        """The tensor in this version; None if this machine does not have it or its file is damaged."""
        ready = self._ready.get(name)
        if ready is None or ready[0] != version:
            path = self._path(name, version)
            try:
                tensor = unsealed(read_plain(path))["value"]
            except (OSError, DamagedFileError, KeyError) as error:
                if path.exists():
                    log.warning("the server's tensor %s, version %d, is asked for again: %s", name, version, error)
                    path.unlink(missing_ok=True)
                return None
            ready = self._ready[name] = version, tensor.to(self._device)
        return ready[1]

    def _path(self, name: str, version: int) -> Path:
        # the folder is named by a hash, because names contain dots and slashes
        folder = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        return self._root / folder / f"{version:06d}.safetensors"


def copy_received(name: str, target: Tensor, source: np.ndarray) -> None:
    """Copy an array that the server sent into network state, on any device.

    Args:
        name: of the state, for the message.
        target: the state, which is changed in place.
        source: of the same shape.

    Raises:
        FedLabError: the shapes differ.
    """
    if source.shape != tuple(target.shape):  # NumPy would repeat a smaller array to fit
        raise FedLabError(
            f"the server sent {name!r} of shape {source.shape}, the network's is {tuple(target.shape)}: every "
            "participant must build the same networks"
        )
    if target.device.type == "cpu":
        np.copyto(target.numpy(), source)  # torch warns about the read-only arrays of the object store
    else:
        target.copy_(torch.from_numpy(np.array(source)))
