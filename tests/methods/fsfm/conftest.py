"""A small FSFM, its networks, and batches to call its hooks with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config, parse
from fedlab.data.regions import template
from fedlab.method import Method, Step
from fedlab.methods.fsfm.views import masked_faces

SMALL: dict[str, Any] = {
    "method": {
        "name": "fsfm", "patch": 8, "width": 16, "depth": 2, "heads": 2, "rep_depth": 1, "rep_heads": 2,
        "pixel_width": 12, "pixel_depth": 1, "pixel_heads": 2, "projector": [16, 8], "predictor": [16, 8],
        "momentum": 0.9,
        "finetune": {
            "rounds": 1, "training": {"lr": 0.001}, "warmup": 0.0, "drop_path": 0.0, "choose": "validation",
        },
    },
    "data": {
        "source": {
            "name": "faces", "domains": 3, "pretrain": 16, "train": 12, "test": 12, "frames": 2, "server": 6,
        },
        "mean": [0.0], "std": [1.0], "partition": ["domain"], "unseen": ["place 3"],
        "validation": {"share": 0.25, "by": "group"},
    },
    "training": {
        "optimizer": "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "weight_decay": 0.05, "clip_norm": 1.0,
    },
    "federation": {"rounds": 3},
    "evaluation": {"every": 1},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip


@dataclass
class Lab:
    """One method with its networks.

    Args:
        method: the method.
        networks: by role.
    """

    method: Method
    networks: nn.ModuleDict

    def batch(self, count: int = 4, seed: int = 0) -> dict[str, Tensor]:
        """Random pictures with the template's regions, as a batch of pre-training."""
        generator = torch.Generator().manual_seed(seed)
        regions = torch.from_numpy(template(32, 32)).long().expand(count, -1, -1)
        images = torch.rand(count, 3, 32, 32, generator=generator)
        return masked_faces(self.method.settings, {"image": images, "regions": regions}, generator)

    def terms(self, batch: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return self.method.loss(self.networks, self.batch() if batch is None else batch, self.step())

    def step(self, index: int = 0, total: int = 8, stage: str = "pretrain") -> Step:
        plan = {"stage": stage, "stage_round": 1, "stage_rounds": 1}
        return Step(1, 0, index, total, index, total, plan, {}, {}, lambda name, value: None)


@pytest.fixture
def lab() -> Callable[..., Lab]:
    """``lab(masking="random", finetune={"head": "bottleneck"})``: the small method with other settings."""

    def make(**settings: Any) -> Lab:
        tuning = {**SMALL["method"]["finetune"], **settings.pop("finetune", {})}
        config = parse(Config, {**SMALL, "method": {**SMALL["method"], **settings, "finetune": tuning}})
        method = make_method(config.method)
        columns = {
            "image": ("float32", (3, 32, 32)), "regions": ("uint8", (32, 32)), "label": ("int64", ()),
        }  # fmt: skip
        networks = build_networks(method, make_task(config, columns, ("fake", "real"), 2), 0, torch.device("cpu"))
        networks.train()
        return Lab(method, networks)

    return make
