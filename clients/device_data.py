"""Clients' data on the device: kept there while there is room, and sent there without waiting."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from fedlab.data.samples import Samples

_Columns = dict[str, Tensor]


class ResidentData:
    """Columns of samples as tensors on a device; those used last stay, up to a number of bytes.

    A set is known by the object that holds it on the host, and leaves the device with it. On the CPU the tensors are
    views, so nothing is kept.

    Args:
        device: where the tensors go.
        budget: bytes kept on it.
    """

    def __init__(self, device: torch.device, budget: int) -> None:
        self._device, self._budget = device, 0 if device.type == "cpu" else budget
        self._kept: OrderedDict[int, tuple[weakref.ref[Samples], _Columns]] = OrderedDict()
        self.bytes = 0

    def columns(self, samples: Samples) -> _Columns:
        """The columns of some samples; the mapping is the caller's own, the tensors are not to be changed."""
        key = id(samples)
        if key in self._kept:
            self._kept.move_to_end(key)
            return dict(self._kept[key][1])
        placed = {name: self._placed(values) for name, values in samples.columns.items()}
        size = _size(placed)
        if size <= self._budget:
            self._kept[key] = weakref.ref(samples, lambda _: self._drop(key)), placed
            self.bytes += size
            while self.bytes > self._budget:
                self._drop(next(iter(self._kept)))
        return dict(placed)

    def _placed(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # torch's allocator keeps the pinned copy until the transfer is over
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _drop(self, key: int) -> None:
        self.bytes -= _size(self._kept.pop(key)[1]) if key in self._kept else 0


def _size(columns: _Columns) -> int:
    return sum(values.numel() * values.element_size() for values in columns.values())
