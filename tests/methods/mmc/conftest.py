"""A small MMC, its networks, and batches to call its hooks with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config, parse
from fedlab.method import Method, Step
from fedlab.methods.mmc.views import training_views

VIEWS: dict[str, Any] = {
    "size": 24, "crop": "window", "flip": False, "color": False, "gain": [0.7, 1.3], "noise": 0.1, "mean": [0.5],
    "std": [0.1],
}  # fmt: skip
SMALL: dict[str, Any] = {
    "method": {
        "name": "mmc", "views": VIEWS, "drop": 0.7, "align": 4, "patch": 4, "width": 16, "depth": 1, "heads": 2,
        "drop_path": 0.0, "patch_widths": [16, 8], "prototypes": 12, "contrast_widths": [16, 8], "epochs": 4,
        "warmup_epochs": 1, "temperature_epochs": 2, "momentum": 0.9,
    },
    "data": {
        "source": {"name": "materials", "train": 64, "test": 24, "validation": 12, "server_test": 12},
        "mean": [0.0], "std": [1.0], "partition": [{"name": "iid", "clients": 2}],
    },
    "training": {
        "optimizer": "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0,
    },
    "federation": {"rounds": 2},
    "evaluation": {"every": 2},
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

    def batch(self, count: int = 6, seed: int = 0, channels: int = 1) -> dict[str, Tensor]:
        """Views of random pictures in [0, 1]."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(count, channels, 32, 32, generator=generator)
        return training_views(self.method.settings, {"image": images}, generator)

    def terms(self, batch: dict[str, Tensor] | None = None, index: int = 0) -> dict[str, Tensor]:
        return self.method.loss(self.networks, self.batch() if batch is None else batch, self.step(index))

    def step(self, index: int = 0, **scratch: Any) -> Step:
        return Step(1, 0, index, 8, index, 8, {}, {}, scratch, lambda name, value: None)


@pytest.fixture
def lab() -> Callable[..., Lab]:
    """``lab(prototypes=64, views={"local": 2})``: the small method with other settings."""

    def make(channels: int = 1, **settings: Any) -> Lab:
        views = {**VIEWS, **settings.pop("views", {})}
        config = parse(Config, {**SMALL, "method": {**SMALL["method"], **settings, "views": views}})
        method = make_method(config.method)
        columns = {"image": ("float32", (channels, 32, 32)), "instances": ("int16", (32, 32))}
        networks = build_networks(method, make_task(config, columns, (), 2), 0, torch.device("cpu"))
        networks.train()
        return Lab(method, networks)

    return make
