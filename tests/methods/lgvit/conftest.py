"""A small LGViT, its networks, and batches to call its hooks with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config, parse
from fedlab.method import Step
from fedlab.method.exchange import Exchanges
from fedlab.methods.lgvit.method import LGViT

SMALL: dict[str, Any] = {
    "method": {
        "name": "lgvit", "patch": 2, "width": 16, "depth": 6, "heads": 2, "mlp_ratio": 2, "init_std": 0.2,
        "exits": [2, 3, 4, 5], "aggregation_heads": 4, "joint_rounds": 1, "crop": 1.0, "flip": False, "threshold": 0.5,
        "timed": 2, "curve": [0.2, 0.5, 0.9],
    },
    "data": {
        "source": {"name": "noisy_digits", "size": 14, "train_size": 48, "test_size": 24},
        "partition": [{"name": "iid", "clients": 2}],
    },
    "training": {"optimizer": "adamw", "lr": 0.005, "batch_size": 8, "local_steps": 2},
    "federation": {"rounds": 2},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip


@dataclass
class Lab:
    """One method with its networks: images of 14×14 pixels, 7×7 patches, 5 classes.

    Args:
        method: the method.
        networks: by role.
    """

    method: LGViT
    networks: nn.ModuleDict

    def batch(self, count: int = 6, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(5, (count,), generator=generator)
        return {"image": torch.randn(count, 1, 14, 14, generator=generator), "label": labels}

    def terms(
        self, stage: str, index: int = 0, batch: Mapping[str, Tensor] | None = None, exits: Sequence[int] = (2, 3, 4, 5)
    ) -> dict[str, Tensor]:
        """The loss of a step of a stage. Only what the stage trains requires gradients."""
        Exchanges(self.networks, self.method).enter({"stage": stage})
        step = self.step(stage, index, exits=exits)
        return self.method.loss(self.networks, dict(batch or self.batch()), step)

    def step(self, stage: str, index: int = 0, stage_round: int = 1, exits: Sequence[int] = (2, 3, 4, 5)) -> Step:
        plan = {"stage": stage, "stage_round": stage_round, "stage_rounds": 4}
        holds = tuple(f"exit_{layer}" for layer in exits)
        return Step(1, 0, index, 3, index, 12, plan, {}, {}, lambda name, value: None, holds)


@pytest.fixture
def lab() -> Callable[..., Lab]:
    """``lab(alpha=0)``: the small method with other settings."""

    def make(channels: int = 1, **settings: Any) -> Lab:
        config = parse(Config, {**SMALL, "method": {**SMALL["method"], **settings}})
        method = make_method(config.method)
        assert isinstance(method, LGViT)
        columns = {"image": ("float32", (channels, 14, 14)), "label": ("int64", ())}
        task = make_task(config, columns, tuple("abcde"), 2)
        networks = build_networks(method, task, 0, torch.device("cpu"))
        networks.train()
        return Lab(method, networks)

    return make
