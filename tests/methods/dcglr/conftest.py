"""A small DCGLR, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config, parse
from fedlab.method import Step
from fedlab.method.exchange import Exchanges
from fedlab.methods.dcglr.method import DCGLR

SMALL: dict[str, Any] = {
    "local_views": 3, "resolutions": [], "width": 12, "pointnet_widths": [8, 8], "hidden": 16, "bottleneck": 8,
    "prototypes": 10, "momentum": 0.9, "epochs": 4, "warmup_epochs": 0, "freeze_prototypes_epochs": 0,
}  # fmt: skip
POINTS = 40


class Lab:
    """A method with its networks, as a client has them in a step."""

    def __init__(self, **settings: Any) -> None:
        sections = {"data": {"source": "shapes"}, "method": {"name": "dcglr", **SMALL, **settings}}
        self.config = parse(Config, sections)
        method = make_method(self.config.method)
        assert isinstance(method, DCGLR)
        self.method = method
        columns: Any = {"points": ("float32", (POINTS, 3)), "label": ("int64", ())}
        self.task = make_task(self.config, columns, ["a", "b"], 2)
        self.networks = build_networks(method, self.task, 0, torch.device("cpu"))
        self.logged: dict[str, float] = {}
        Exchanges(self.networks, method).enter({})
        self.networks.train()
        method.set_modes(self.networks, {})

    def step(self, at: int = 0, total: int = 100) -> Step:
        return Step(
            round=1, epoch=0, index=at, per_round=total, global_step=at, total_steps=total, plan={}, shared={},
            scratch={}, log=self.logged.__setitem__,
        )  # fmt: skip

    def batch(self, n: int = 6, seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        collate = self.method.batch_spec({}).collate
        assert collate
        return collate({"points": torch.randn(n, POINTS, 3, generator=generator)}, generator)

    def loss(self, batch: dict[str, Any] | None = None, step: Step | None = None) -> dict[str, Tensor]:
        return self.method.loss(self.networks, batch or self.batch(), step or self.step())

    def trained(self, steps: int = 1, total: int = 100) -> None:
        optimizer = torch.optim.AdamW(self.method.param_groups(self.networks, {}), lr=0.01)
        for at in range(steps):
            step = self.step(at, total)
            optimizer.zero_grad()
            torch.stack(list(self.loss(self.batch(seed=at), step).values())).sum().backward()
            optimizer.step()
            self.method.after_step(self.networks, step)

    def gradients(self, loss: Tensor) -> dict[str, float]:
        """Norm of the gradient of every parameter that gets one."""
        self.networks.zero_grad()
        loss.backward()
        return {n: float(p.grad.norm()) for n, p in self.networks.named_parameters() if p.grad is not None}


@pytest.fixture
def lab() -> Callable[..., Lab]:
    return Lab
