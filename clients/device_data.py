"""Clients' data on the device: it stays there while there is room, and is copied without waiting for the copy."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from fedlab.data.samples import Samples

_Columns = dict[str, Tensor]


class ResidentData:
    """A cache of samples on a device. It keeps the samples that were used last, up to a number of bytes.

    Samples are identified by their `Samples` object, and the cache drops them once that object no longer exists. On the
    CPU the tensors share the memory of the samples, so that nothing has to be kept.

    Args:
        device: the device that the tensors are on.
        budget: largest number of bytes kept on the device.
    """

    def __init__(self, device: torch.device, budget: int) -> None:
        self._device, self._budget = device, 0 if device.type == "cpu" else budget
        self._kept: OrderedDict[int, tuple[weakref.ref[Samples], _Columns]] = OrderedDict()
        self.bytes = 0

    def columns(self, samples: Samples) -> _Columns:
        """The columns of the samples as tensors on the device. The caller may change the dict, but not the tensors."""
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
        # torch's allocator does not reuse the pinned copy before the transfer is over
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _drop(self, key: int) -> None:
        self.bytes -= _size(self._kept.pop(key)[1]) if key in self._kept else 0


def _size(columns: _Columns) -> int:
    return sum(values.numel() * values.element_size() for values in columns.values())
