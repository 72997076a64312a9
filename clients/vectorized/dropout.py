"""Dropout for several clients at once, in which each client gets the mask that it would have drawn alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SeparateDropout(TorchFunctionMode):
    """Inside this context, `F.dropout` under `torch.func.vmap` draws each client's mask from that client's generator.

    On the CPU, a mask is the same as that of a client that trains alone, if its generator has the seed of that client's
    global generator. On a GPU it is not, because the GPU's dropout kernel uses random numbers in another order. All
    other random functions are left to ``vmap``, which refuses them.

    Args:
        generators: one for each client, on the device of the activations, in the order in which clients are batched.
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
    """Returns x · mask / (1 − p), and mask / (1 − p)."""

    @staticmethod
    def forward(x: Tensor, p: float, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        # vmap() below is called instead whenever the activations depend on the client
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
        assert in_dims[0] is not None  # torch calls this for batched inputs only, and only x can be batched
        x = x.movedim(in_dims[0], 0)
        # contiguous, as the mask of a client that trains alone; empty_like would take the memory layout of the stack
        masks = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for mask, generator in zip(masks, generators, strict=True):
            mask.bernoulli_(1 - p, generator=generator)
        if p < 1:
            masks.div_(1 - p)
        return (x * masks, masks), (0, 0)
