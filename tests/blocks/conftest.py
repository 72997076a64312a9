"""A server at work, with a small network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.config import TrainingConfig
from fedlab.method import ServerContext, Task
from fedlab.storage.cache import ResultCache

CPU = torch.device("cpu")


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., ServerContext]:
    """Makes contexts of one run, which share a cache, with the networks and samples that are given."""

    def make(
        networks: Mapping[str, nn.Module] | None = None,
        data: Mapping[str, Mapping[str, Tensor]] | None = None,
        **work: Any,
    ) -> ServerContext:
        made = nn.ModuleDict(dict(networks or {}))
        task = Task(3, (2,), ("a", "b", "c"), 2, "none", {}, lambda *args: nn.Identity())
        seed, preflight = work.pop("seed", 0), work.pop("preflight", False)
        training = TrainingConfig(**{"lr": 0.1, "optimizer": "sgd", "batch_size": 4, **work.pop("training", {})})
        return ServerContext(
            before={},
            after=made.state_dict(),
            shared={},
            private=work.pop("private", {}),
            data=data or {},
            results={},
            batch_size=4,
            task=task,
            networks=made,
            training=training,
            device=CPU,
            seed=seed,
            round=work.pop("round", 0),
            rounds=work.pop("rounds", 3),
            plan={},
            cache=ResultCache(tmp_path / "cache", lambda: "data", seed, CPU, keep=not preflight),
            preflight=preflight,
        )

    return make
