"""A small Hybrid Distillation, and one step of it."""

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
from fedlab.methods.hybrid_distill.method import HybridDistill
from fedlab.methods.hybrid_distill.settings import HybridSettings

TOWER: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
SMALL: dict[str, Any] = {
    "patch": 4, "init_std": 0.2, "crop": (1.0, 1.0), "flip": False, "epochs": 4, "warmup_epochs": 0,
    "student": TOWER, "feature_teacher": {**TOWER, "steps": 1},
    "relation_teacher": {**TOWER, "steps": 1, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2},
}  # fmt: skip


def settings(**given: Any) -> HybridSettings:
    """Settings, of which sections may be mappings."""
    return HybridSettings(**given)


def _over(before: Any, value: Any) -> Any:
    return {**before, **value} if isinstance(before, dict) else value


class Lab:
    """A method with its networks, as a client has them in a step of a stage, by default of the distillation."""

    def __init__(self, *, stage: str = "distill", columns: Any = None, **settings: Any) -> None:
        merged = {**SMALL, **{key: _over(SMALL.get(key), value) for key, value in settings.items()}}
        sections = {"data": {"source": "silhouettes"}, "method": {"name": "hybrid_distill", **merged}}
        self.config = parse(Config, sections)
        method = make_method(self.config.method)
        assert isinstance(method, HybridDistill)
        self.method = method
        shapes = {"image": ("float32", (3, 24, 24)), "label": ("int64", ())}
        self.task = make_task(self.config, columns or shapes, ["a", "b", "c"], 2)
        self.networks = build_networks(method, self.task, 0, torch.device("cpu"))
        self.plan = {"stage": stage, "stage_round": 1, "stage_rounds": 1}
        self.logged: dict[str, float] = {}
        self.exchange = Exchanges(self.networks, method).enter(self.plan)
        self.networks.train()

    def step(self, at: int = 0, total: int = 100) -> Step:
        return Step(
            round=1, epoch=0, index=at, per_round=total, global_step=at, total_steps=total, plan=self.plan, shared={},
            scratch={}, log=self.logged.__setitem__,
        )  # fmt: skip

    def batch(self, n: int = 5, seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        collate = self.method.batch_spec(self.plan).collate
        assert collate
        image = torch.randn(n, 3, 24, 24, generator=generator)
        return collate({"image": image, "label": torch.arange(n) % 3}, generator)

    def loss(self, batch: dict[str, Any] | None = None) -> dict[str, Tensor]:
        return self.method.loss(self.networks, batch or self.batch(), self.step())

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradient of every parameter that gets one."""
        self.networks.zero_grad()
        loss.backward()
        return {n: p.grad for n, p in self.networks.named_parameters() if p.grad is not None}


@pytest.fixture
def lab() -> Callable[..., Lab]:
    return Lab
