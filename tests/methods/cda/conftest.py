"""A client or the server of CDA at work on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

BATCH_NORM = {"name": "convnet", "width": 8, "depth": 2, "norm": "batch"}
SMALL = {"ipc": 2, "iterations": 6, "chunk": 4, "local_epochs": 1}


@pytest.fixture
def lab(bench: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``lab(recover=…, post=…)``: a `Bench` of this method whose teacher has seen some data; 2 squeeze rounds of 5."""
    kind = type(bench())

    def make(recover: Mapping[str, Any] | None = None, post: Mapping[str, Any] | None = None, **more: Any) -> Any:
        sections = {key: more.pop(key) for key in ("training", "federation", "model") if key in more}
        settings = {
            "squeeze": {"rounds": 2},
            "recover": {**SMALL, **(recover or {})},
            "post": {"epochs": 4, "batch_size": 4, **(post or {})},
            **more,
        }
        base = {"model": BATCH_NORM, "federation": {"rounds": 5}, "training": {"lr": 0.1, "batch_size": 8}}
        made = kind(tmp_path, {"name": "cda", **settings}, **{**base, **sections})
        model = made.networks["model"].train()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for seed in range(30):
            batch = made.data(seed % 3)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
            optimizer.step()
        optimizer.zero_grad()
        model.eval()
        return made

    return make
