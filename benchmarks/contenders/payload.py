"""A method that trains nothing and whose model can have any size; all of its values change in every round."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.contenders.ours import Echo
from fedlab.method import FitContext, Task


class _Values(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        # of different values, because equal parts of a payload are sent and stored only once
        self.values = nn.Parameter(torch.rand(size))


class Changing(Echo):
    """Sends back what it got, changed everywhere, so that nothing of it is known on the way."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": _Values(self.settings.payload)}

    @torch.no_grad()
    def fit(self, ctx: FitContext) -> None:
        for parameter in ctx.networks.parameters():
            parameter.mul_(1.0 + 1e-3 * (ctx.client + 1))
