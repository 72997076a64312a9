"""A small GPFM with two experts, its networks, and batches to call its hooks with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.hashes import entries
from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config, parse
from fedlab.method import Step
from fedlab.methods.gpfm.experts import Expert, Tokens
from fedlab.methods.gpfm.method import GPFM
from fedlab.methods.gpfm.views import training_crops
from fedlab.models.vit import ViT

SMALL: dict[str, Any] = {
    **entries()["method/gpfm"], "federation": {"rounds": 2}, "evaluation": {"every": 2},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip


class Watched(Expert):
    """An expert that remembers the crops it was shown."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__(ViT((24, 24), patch=patch, channels=3, width=dim, depth=1, heads=2), patch)
        self.seen: list[Tensor] = []
        self.requires_grad_(False).eval()

    def forward(self, crops: Tensor) -> Tokens:
        self.seen.append(crops)
        return super().forward(crops)


@dataclass
class Lab:
    """One method with its networks, and the experts that the client holds."""

    method: GPFM
    networks: nn.ModuleDict
    experts: dict[str, Watched] = field(default_factory=dict)

    def batch(self, count: int = 4, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return training_crops(
            self.method.settings, {"image": torch.rand(count, 3, 24, 24, generator=generator)}, generator
        )

    def step(self, at: int = 0, total: int = 8) -> Step:
        found = self.experts
        return Step(1, 0, at, total, at, total, {}, {}, {}, lambda name, value: None, tuple(found), found.__getitem__)

    def terms(self, batch: dict[str, Tensor] | None = None, at: int = 0) -> dict[str, Tensor]:
        return self.method.loss(self.networks, self.batch() if batch is None else batch, self.step(at))


@pytest.fixture
def lab() -> Callable[..., Lab]:
    """``lab("nuclei", koleo_weight=0)``: a client that holds this expert, of a method with other settings."""

    def make(*holds: str, **settings: Any) -> Lab:
        views = {**SMALL["method"]["views"], **settings.pop("views", {})}
        config = parse(Config, {**SMALL, "method": {**SMALL["method"], "views": views, **settings}})
        method = make_method(config.method)
        assert isinstance(method, GPFM)
        task = make_task(config, {"image": ("float32", (3, 24, 24)), "label": ("int64", ())}, ("a", "b"), 2)
        networks = build_networks(method, task, 0, torch.device("cpu"))
        networks.train()
        method.set_modes(networks, {})
        patches = {"nuclei": 4, "stroma": 8}
        experts = {name: Watched(method.settings.experts[name].dim, patches[name]) for name in holds}
        return Lab(method, networks, experts)

    return make
