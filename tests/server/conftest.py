"""A federation of seconds: noise with class-dependent means, a small network, methods that use every hook."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.config import Config, Section, parse
from fedlab.method import Batch, FitContext, Group, Method, Plan, ServerContext, Step, Task
from tests.server.nodes import Deployment

# workers cannot import this file
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Plain(Method):
    """Supervised training that can be told to misbehave."""

    class Settings(Section):
        kill: int = -1
        once: str = ""
        fail: int = -1
        nan: int = -1

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": task.model()}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](batch["image"]), batch["label"])}

    def fit(self, ctx: FitContext) -> None:
        s = self.settings
        ctx.train()
        if ctx.preflight:
            return
        ctx.state["rounds"] = ctx.state.get("rounds", torch.zeros(())) + 1
        if ctx.client == s.fail and ctx.round == 2:
            raise RuntimeError("this client is broken")
        if ctx.client == s.nan and ctx.round == 2:
            next(iter(ctx.networks.parameters())).data.fill_(float("nan"))
        if ctx.client == s.kill and ctx.round == 2 and not Path(s.once).exists():
            Path(s.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Staged(Method):
    """A teacher sent once after it was made on the server, a local head, a stage in which the body is fixed."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        size = task.input_shape[0] * task.input_shape[1] * task.input_shape[2]
        return {
            "teacher": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            "body": nn.Sequential(nn.Flatten(), nn.Linear(size, 4)),
            "head": nn.Linear(4, task.num_classes),
            "expert": nn.Linear(4, 1),
        }

    def plan(self, round: int, rounds: int) -> Plan:
        return {"stage": "body" if round <= 2 else "head"}

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"lr": 0.01, "local_epochs": 2} if plan["stage"] == "head" else {}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        return (
            Group("teacher", ("teacher",), mode="once"),
            Group("body", ("body",), mode="average" if plan["stage"] == "body" else "once"),
            Group("head", ("head",), mode="local"),
            Group("expert", ("expert",), weight="uniform"),
        )

    def server_prepare(self, ctx: ServerContext) -> None:
        with torch.no_grad():
            ctx.networks["teacher"][0].weight.fill_(0.5)
        ctx.private["secret"] = torch.ones(3)

    def contributes(self, ctx: FitContext, group: str) -> bool:
        return group != "expert" or ctx.client == 1

    def fit(self, ctx: FitContext) -> None:
        ctx.scratch["bank"] = ctx.client
        ctx.train()
        assert not ctx.networks["teacher"].training
        with torch.no_grad():
            ctx.networks["expert"].bias.fill_(float(ctx.client + ctx.round))

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        assert "bank" in step.scratch
        hidden = networks["body"](batch["image"])
        with torch.no_grad():
            target = networks["teacher"](hidden)
        return {
            "ce": F.cross_entropy(networks["head"](hidden), batch["label"]),
            "kd": (hidden - target).square().mean(),
        }

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        output: Tensor = networks["head"](networks["body"](batch["image"]))
        return output

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        return {"teacher_mean": float(ctx.networks["teacher"][0].weight.mean())}


@pytest.fixture(scope="session")
def plain() -> type[Method]:
    return Plain


@pytest.fixture(scope="session")
def staged() -> type[Method]:
    return Staged


@pytest.fixture(scope="session")
def samples() -> fedlab.Dataset:
    """Four domains of 40 images of 1×8×8 in three classes, and 12 to test."""
    rng = np.random.default_rng(0)
    labels = {split: rng.permutation(np.arange(count) % 3) for split, count in (("train", 160), ("test", 48))}
    images = {
        split: np.clip(rng.normal(0.25 + 0.25 * y[:, None, None], 0.2, (len(y), 8, 8)), 0, 1).astype(np.float32)
        for split, y in labels.items()
    }
    domains = {split: np.arange(len(y)) % 4 for split, y in labels.items()}
    return fedlab.from_arrays(
        images["train"],
        labels["train"],
        images["test"],
        labels["test"],
        domains=(domains["train"], domains["test"]),
    )


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Config]:
    """A configuration, changed by dotted keys."""

    def make(**changes: Any) -> Config:
        raw = {
            "method": {"name": "supervised"},
            "model": {"name": "convnet", "width": 4, "depth": 2},
            "data": {"source": {"name": "digits"}, "partition": [{"name": "domain"}]},
            "training": {"lr": 0.1, "batch_size": 16},
            "federation": {"rounds": 3},
            "engine": {"name": "inline"},
            "tracking": {"folder": str(tmp_path / "runs"), "console": "quiet", "tensorboard": False},
        }
        return parse(Config, raw).with_overrides({key.replace("__", "."): value for key, value in changes.items()})

    return make


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    return Deployment(tmp_path / "deployment", monkeypatch)


@pytest.fixture
def small(settings: Callable[..., Config]) -> Callable[..., Config]:
    """A run of three rounds on three clients with a few pictures each, which may be left out."""

    def make(**changes: object) -> Config:
        return settings(
            **{
                "data__source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 12},
                "data__partition": [{"name": "iid", "clients": 3}],
                "federation__rounds": 3,
                "federation__on_client_error": "skip",
                **changes,
            }
        )

    return make
