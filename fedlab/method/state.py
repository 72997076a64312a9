"""The tensors that a client keeps from round to round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

import torch
from torch import Tensor


class ClientState(MutableMapping[str, Tensor]):
    """The tensors that a client keeps from round to round and never sends.

    They are stored on the CPU. Reading one returns it on the device. The state is written to disk only if a tensor has
    been assigned or deleted, so a tensor that was changed in place has to be assigned again.

    Args:
        tensors: the tensors that the client has kept, on the CPU.
        device: the device on which tensors are returned.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, device: torch.device | str = "cpu") -> None:
        self._tensors, self._device = dict(tensors or {}), device
        self.changed = False

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def __setitem__(self, name: str, value: Tensor) -> None:
        # The value is copied, because the method may change its own tensor later and two names must not share memory.
        self._tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        self.changed = True

    def __delitem__(self, name: str) -> None:
        del self._tensors[name]
        self.changed = True

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
