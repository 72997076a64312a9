"""What a client keeps between rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

import torch
from torch import Tensor


class ClientState(MutableMapping[str, Tensor]):
    """A client's own tensors, kept between rounds on the client's side, handed out on the device.

    Assigning marks the state as changed; changing a tensor in place does not.

    Args:
        tensors: what the client kept, on the CPU.
        device: where tensors are handed out.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, device: torch.device | str = "cpu") -> None:
        self._tensors, self._device = dict(tensors or {}), device
        self.changed = False

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def __setitem__(self, name: str, value: Tensor) -> None:
        # a copy: the method may go on changing its tensor, and two names must not share memory
        self._tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        self.changed = True

    def __delitem__(self, name: str) -> None:
        del self._tensors[name]
        self.changed = True

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
