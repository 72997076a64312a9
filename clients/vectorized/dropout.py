"""Dropout for several clients at once: each draws what it would have drawn alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SeparateDropout(TorchFunctionMode):
    """Inside, `F.dropout` under `torch.func.vmap` takes the mask of each batched client from that client's generator.

    On the CPU these are the very draws of a client whose global generator was seeded alike; a GPU's own dropout kernel
    numbers its draws in another way. Any other random function is left to ``vmap``, which refuses it.

    Args:
        generators: one per client, on the device of the activations, in the order in which they are batched.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._generators = generators

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (self._dropout if func is F.dropout else func)(*args, **(kwargs or {}))

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        dropped: Tensor = _Masked.apply(input, p, self._generators)[0]  # type: ignore[no-untyped-call]  # torch has no types for it
        return dropped


class _Masked(torch.autograd.Function):
    """x · mask / (1 − p), and the scaled mask."""

    @staticmethod
    def forward(x: Tensor, p: float, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        # vmap() below takes the place of this one wherever the activations depend on a client
        raise RuntimeError("dropout of something that is the same for all clients, which would draw the same for all")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, p: float, generators: Sequence[torch.Generator]
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        assert in_dims[0] is not None  # torch calls this for batched inputs only, and only x can be one
        x = x.movedim(in_dims[0], 0)
        masks = torch.empty(x.shape, dtype=x.dtype, device=x.device)  # a stack is not laid out as its parts would be
        for mask, generator in zip(masks, generators, strict=True):
            mask.bernoulli_(1 - p, generator=generator)
        if p < 1:
            masks.div_(1 - p)
        return (x * masks, masks), (0, 0)
