"""Sums of clipped gradients of single examples, to which DP-SGD adds its noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Terms = Mapping[str, Tensor]


@dataclass(frozen=True)
class ClippedSum:
    """Sums over the examples of a batch.

    Args:
        gradients: Σ g_i · min(1, C / ‖g_i‖) by parameter, where g_i is the gradient of example i.
        norms: (n,) float64, ‖g_i‖ over all parameters together.
        terms: sums of the named terms of the loss; empty for an empty batch.
    """

    gradients: Mapping[str, Tensor]
    norms: Tensor
    terms: Mapping[str, Tensor]


@torch.no_grad()
def clipped_sum(
    loss: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Terms],
    parameters: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    clip: float,
    at_a_time: int,
) -> ClippedSum:
    """The sum of the examples' gradients, each clipped to the L2 norm C over all parameters together.

    Random functions such as dropout draw separately for each example. The gradient sums of an empty batch are zero.

    Args:
        loss: (parameters, batch of one example) → named scalar terms, whose sum is differentiated.
        parameters: the parameters by name.
        batch: columns (n, …) by name.
        clip: C.
        at_a_time: number of examples whose gradients are in memory at the same time.

    Source: Abadi et al. 2016, arXiv 1607.00133, algorithm 1.
    """

    def of_one(values: Mapping[str, Tensor], example: Mapping[str, Tensor]) -> tuple[Tensor, Terms]:
        terms = {name: t.reshape(()) for name, t in loss(values, {n: c[None] for n, c in example.items()}).items()}
        return torch.stack([*terms.values()]).sum(), terms

    each = torch.func.vmap(torch.func.grad(of_one, has_aux=True), in_dims=(None, 0), randomness="different")
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    lengths = [torch.zeros(0, dtype=torch.float64)]
    sums: dict[str, Tensor] = {}
    count = len(next(iter(batch.values()), ()))
    for start in range(0, count, at_a_time):
        gradients, terms = each(parameters, {name: column[start : start + at_a_time] for name, column in batch.items()})
        flat = {name: g.reshape(len(g), -1) for name, g in gradients.items()}
        parts = [torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in flat.values()]
        norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        factors = (clip / norms).clamp(max=1.0)
        for name, g in flat.items():
            total[name] += (factors.to(g.dtype) @ g).view_as(total[name])
        lengths.append(norms.cpu())
        sums = {name: sums.get(name, 0) + values.sum() for name, values in terms.items()}
    return ClippedSum(total, torch.cat(lengths), sums)
