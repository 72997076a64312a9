"""A small S2-UniSeg, its networks, and batches to call its hooks with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.config import Config, parse
from fedlab.method import Step
from fedlab.methods.s2_uniseg.method import S2UniSeg

METHOD: dict[str, Any] = {
    "name": "s2_uniseg",
    "backbone": {"kind": "cosines", "trained": False, "patch": 4, "width": 12},
    "decoder": {
        "instances": 4, "semantics": 3, "width": 32, "heads": 2, "layers": 1, "pixel_layers": 1, "feedforward": 16,
        "pixel_feedforward": 16,
    },
    "views": {"crops": 2, "scale": [0.25, 0.6], "size": 32, "color": False, "mean": [0.0], "std": [1.0]},
    "adapter_width": 4, "head_widths": [16, 8], "prototypes": 10, "init_std": 0.2, "momentum": 0.9, "timed": 1,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "method": METHOD,
    "data": {
        "source": {"name": "rectangles", "train": 12, "test": 6, "server_test": 4},
        "mean": [0.0], "std": [1.0], "partition": [{"name": "iid", "clients": 2}],
    },
    "training": {"optimizer": "adamw", "lr": 0.002, "batch_size": 4, "local_steps": 2},
    "federation": {"rounds": 2},
    "evaluation": {"every": 2},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip
VIT = {"kind": "vit", "trained": True, "pretrained": None, "patch": 4, "width": 12, "depth": 1, "heads": 2, "size": 64}


def pictures(count: int, side: int = 64, seed: int = 0) -> Tensor:
    """Pictures with a colored square each, in [0, 1]."""
    images = torch.full((count, 3, side, side), 0.1)
    generator = torch.Generator().manual_seed(seed)
    for image in images:
        top, left = (torch.randint(0, side // 8, (2,), generator=generator) * 4).tolist()
        image[:, top : top + 24, left : left + 24] = torch.rand(3, 1, 1, generator=generator)
    return images


@dataclass
class Lab:
    """One method with its networks.

    Args:
        method: the method.
        networks: by role.
        logged: what its loss logged last.
    """

    method: S2UniSeg
    networks: nn.ModuleDict
    logged: dict[str, float] = field(default_factory=dict)

    def batch(self, count: int = 4, seed: int = 0) -> dict[str, Any]:
        collate = self.method.batch_spec({}).collate
        assert collate
        return collate({"image": pictures(count, seed=seed)}, torch.Generator().manual_seed(seed))

    def step(self, index: int = 0, total: int = 100) -> Step:
        return Step(1, 0, index, total, index, total, {}, {}, {}, self.logged.__setitem__)

    def loss(self, batch: dict[str, Any] | None = None, step: Step | None = None) -> dict[str, Tensor]:
        return self.method.loss(self.networks, batch or self.batch(), step or self.step())


@pytest.fixture
def lab() -> Callable[..., Lab]:
    """``lab(prototypes=64, views={"crops": 1})``: the small method with other settings."""

    def make(channels: int = 3, size: tuple[int, int] = (64, 64), **settings: Any) -> Lab:
        merged = {k: {**METHOD[k], **v} if isinstance(v, dict) and k in METHOD else v for k, v in settings.items()}
        config = parse(Config, {**SMALL, "method": {**METHOD, **merged}})
        method = make_method(config.method)
        assert isinstance(method, S2UniSeg)
        columns = {"image": ("float32", (channels, *size)), "instances": ("int16", size), "mask": ("int64", size)}
        task = make_task(config, columns, ["ground", "red", "blue"], 2)
        networks = build_networks(method, task, 0, torch.device("cpu"))
        networks.train()
        return Lab(method, networks)

    return make
