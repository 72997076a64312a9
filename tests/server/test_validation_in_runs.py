"""Validation samples reach a method's hooks on clients and on the server, and are never trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedlab
from fedlab.method import EvaluationContext, FitContext, ServerContext
from fedlab.methods.supervised.method import Supervised

SEEN: dict[str, list[torch.Tensor]] = {}


class Watching(Supervised):
    def fit(self, ctx: FitContext) -> None:
        if not ctx.preflight:
            SEEN.setdefault("trained", []).append(ctx.data["image"])
            SEEN.setdefault("held by clients", []).append(ctx.validation["image"])
        super().fit(ctx)

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        if not ctx.preflight:
            SEEN.setdefault("in evaluation", []).append(ctx.validation["image"])
        return super().evaluate(ctx)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        if not ctx.preflight:
            SEEN.setdefault("held by the server", []).append(ctx.data["validation"]["image"])
        return {}


def test_hooks_find_them(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "method": "supervised",
        "model": "logistic",
        "data": {
            "source": {"name": "digits", "domains": ["handwritten"], "train_per_domain": 100, "test_per_domain": 20},
            "partition": [{"name": "iid", "clients": 2}],
            "held": {"probe": {"share": 0.2}},
            "validation": 0.25,
        },
        "federation": {"rounds": 1},
        "evaluation": {"validation": False},  # it would call the hook once more
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "folder": str(tmp_path)},
    }
    SEEN.clear()
    fedlab.run(config, method=Watching)
    assert {name: [len(part) for part in parts] for name, parts in SEEN.items()} == {
        "trained": [30, 30],
        "held by clients": [10, 10],
        "in evaluation": [10, 10],
        "held by the server": [5],
    }
    held = torch.cat([*SEEN["held by clients"], *SEEN["held by the server"]]).flatten(1)
    assert torch.cdist(torch.cat(SEEN["trained"]).flatten(1), held).min() > 0
    assert all(torch.equal(a, b) for a, b in zip(SEEN["held by clients"], SEEN["in evaluation"], strict=True))
