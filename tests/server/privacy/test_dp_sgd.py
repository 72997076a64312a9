"""Example-level privacy in whole runs: the account of every client, equal results, and what is refused."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.config import Config, load_config
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.experiment.result import Run
from fedlab.method import Batch, BatchSpec, FitContext, Group, Method, Plan, Step, Task
from fedlab.privacy.accountant import GaussianStep, composed_epsilon

pytest.importorskip("dp_accounting", reason="the extra fedlab-sim[dp] is not installed")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
Settings = Callable[..., Config]
PRIVATE = {"name": "dp_sgd", "clip": 0.5, "noise_multiplier": 1.0}


class Careful(Method):
    """Supervised training of a network with dropout."""

    per_example_loss = True

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": nn.Sequential(task.model(), nn.Dropout(0.2))}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](batch["image"]), batch["label"])}


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def spent(run: Run) -> list[dict[str, Any]]:
    return [event["privacy"] for event in run.history.rounds]


# the account


def test_every_client_is_accounted_for_the_steps_it_did(settings: Settings, samples: fedlab.Dataset) -> None:
    """Four clients of 40 samples, batches of 16: q = 0.4, two steps a round; a client is left out now and then."""
    config = settings(privacy=PRIVATE, federation__sampler={"name": "uniform", "fraction": 0.5}, federation__rounds=4)
    run = fedlab.run(config, data=samples)
    own = run.history.of("client")
    rounds = {client: [event for event in own if event["client"] == client] for client in range(4)}
    expected = {}
    for client, events in rounds.items():
        for done, event in enumerate(events, start=1):
            cost = composed_epsilon({GaussianStep(0.4, 1.0): 2 * done}, 1e-5)
            assert event["privacy"] == {"epsilon": cost, "rate": 0.4, "noise_multiplier": 1.0, "steps": 2 * done}
            expected[str(client)] = cost
    assert len({len(events) for events in rounds.values()}) > 1
    last = spent(run)[-1]
    assert last["clients"] == expected
    assert last["epsilon"] == max(expected.values())
    assert last["client"] == min(int(c) for c, cost in expected.items() if cost == last["epsilon"])
    stated = {name: last[name] for name in ("delta", "adjacency", "sampling", "noise_multiplier", "clip")}
    assert stated == {
        "delta": 1e-5,
        "adjacency": "add-or-remove-one example",
        "sampling": "poisson, rate 0.4",
        "noise_multiplier": 1.0,
        "clip": 0.5,
    }
    costs = [event["epsilon"] for event in spent(run)]
    assert costs == sorted(costs)
    assert "4,privacy,epsilon," in run.folder.metrics.read_text(encoding="utf-8")


def test_a_target_is_met_after_all_rounds_by_each_client_with_its_own_noise(
    settings: Settings, samples: fedlab.Dataset
) -> None:
    parts = [{"name": "quantity", "clients": 3, "sigma": 0.8}]
    config = settings(privacy={"name": "dp_sgd", "target_epsilon": 4.0}, data__partition=parts)
    run = fedlab.run(config, data=samples)
    last = {event["client"]: event["privacy"] for event in run.history.of("client") if event["round"] == 3}
    assert len({own["noise_multiplier"] for own in last.values()}) == 3
    assert all(3.8 < own["epsilon"] <= 4.0 for own in last.values())
    assert spent(run)[-1]["epsilon"] == max(own["epsilon"] for own in last.values())


def test_fewer_steps_of_a_late_client_cost_less(settings: Settings, samples: fedlab.Dataset, tmp_path: Path) -> None:
    devices = tmp_path / "devices.csv"
    devices.write_text("client,speed,down,up\n0,10,1e9,1e9\n1,1e6,1e9,1e9\n2,1e6,1e9,1e9\n3,1e6,1e9,1e9\n")
    config = settings(
        privacy=PRIVATE,
        federation__devices={"csv": str(devices)},
        federation__deadline=2.0,
        federation__rounds=1,
        training__local_epochs=3,
    )
    run = fedlab.run(config, data=samples)
    steps = {event["client"]: event["privacy"]["steps"] for event in run.history.of("client")}
    assert steps == {0: 1, 1: 6, 2: 6, 3: 6}
    costs = spent(run)[-1]["clients"]
    assert costs["0"] == composed_epsilon({GaussianStep(0.4, 1.0): 1}, 1e-5) < costs["1"]


# equal results


def test_runs_are_equal_on_every_engine_and_after_a_stop(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset
) -> None:
    config = settings(privacy=PRIVATE, federation__strategy={"name": "scaffold"}, training__local_epochs=2)
    inline = fedlab.run(config, method=Careful, data=samples)
    other = fedlab.run(config.with_overrides({"engine.name": "ray", "engine.workers": 2}), method=Careful, data=samples)
    stopped = fedlab.run(config, method=Careful, data=samples, until=1)
    resumed = fedlab.resume(stopped.path, method=Careful, data=samples)
    assert digest(inline) == digest(other) == digest(resumed)
    assert spent(inline) == spent(other) == spent(resumed)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation__strategy": {"name": "fedprox", "mu": 0.1}, "training__optimizer": "adam"},
        {"federation__strategy": {"name": "fednova"}, "exchange__compression": [{"name": "topk", "fraction": 0.1}]},
        {"federation__strategy": {"name": "feddyn"}, "exchange__local": ["model.head.*"]},
        {"federation__strategy": {"name": "flower.FedMedian"}, "data__unseen": 0.25},
        {"method": {"name": "moon", "projection_dim": 8}, "training__precision": "bfloat16"},
        {"model": {"name": "convnet", "width": 4, "depth": 2, "norm": "group"}, "training__schedule": "cosine"},
    ],
    ids=["fedprox", "fednova", "feddyn", "flower", "moon", "group"],
)
def test_what_only_sees_noisy_gradients_goes_with_it(
    changes: dict[str, Any], settings: Settings, samples: fedlab.Dataset
) -> None:
    run = fedlab.run(settings(privacy=PRIVATE, federation__rounds=2, **changes), data=samples)
    cost = composed_epsilon({GaussianStep(0.4, 1.0): 4}, 1e-5)
    trained = {str(client) for event in run.history.rounds for client in event["clients"]}
    assert spent(run)[-1]["clients"] == dict.fromkeys(sorted(trained), cost)
    assert run.metrics["mean"]["loss"] is not None


# refusals


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"method": {"name": "fedlgd"}}, "method.name"),
        ({"method": {"name": "vhl"}}, "method.name"),
        ({"federation__mode": "asynchronous", "federation__devices": {}}, "federation.mode"),
        ({"federation__on_client_error": "skip"}, "federation.on_client_error"),
        ({"federation__strategy": {"name": "flower.QFedAvg", "client_learning_rate": 0.1}}, "federation.strategy.name"),
        ({"federation__sampler": {"name": "power_of_choice"}}, "federation.sampler.name"),
        ({"training__clip_norm": 1.0}, "training.clip_norm"),
        ({"data__drift": [{"name": "labels", "rounds": 2}]}, "data.drift"),
        ({"privacy": {"name": "dp_sgd"}}, "privacy.noise_multiplier"),
        ({"privacy": {**PRIVATE, "target_epsilon": 3.0}}, "privacy.noise_multiplier"),
        ({"privacy": {**PRIVATE, "clip": 0}}, "privacy.clip"),
        ({"privacy": {**PRIVATE, "max_grad_norm": 1}}, "privacy.max_grad_norm"),
        ({"privacy": {**PRIVATE, "delta": 0}}, "privacy.delta"),
        ({"privacy": {"name": "collections:OrderedDict"}}, "privacy.name"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused_with_its_key(
    changes: dict[str, Any], key: str, settings: Settings, samples: fedlab.Dataset
) -> None:
    with pytest.raises(ConfigErrors) as refused:
        fedlab.run(settings(**{"privacy": PRIVATE, **changes}), data=samples)
    assert key in [error.key for error in refused.value.errors]


class Prepares(Careful):
    per_example_loss = True

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        return {"mean": ctx.data["image"].mean()}


class Sends(Careful):
    per_example_loss = True

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        return {"first": ctx.data["image"][0]}


class Chooses(Careful):
    per_example_loss = True

    def contributes(self, ctx: FitContext, group: str) -> bool:
        return bool(ctx.data["label"].float().mean() > 1)


class Weighs(Careful):
    per_example_loss = True

    def examples(self, columns: Any) -> int:
        return int((columns["label"] == 0).sum())


class Mixes(Careful):
    per_example_loss = True

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=lambda batch, generator: batch)


class Silent(Careful):
    """Inherits the promise with a loss of its own, for which nobody made it."""

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"spread": networks["model"](batch["image"]).var(dim=0).sum()}


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Prepares, "statistics before round 1"),
        (Sends, "beside the weights"),
        (Chooses, "contributes"),
        (Weighs, "weighs"),
        (Mixes, "changes batches"),
        (Silent, "per_example_loss"),
    ],
)
def test_methods_through_which_data_gets_out_are_refused(
    method: type[Method], reason: str, settings: Settings, samples: fedlab.Dataset
) -> None:
    with pytest.raises(ConfigErrors, match=reason):
        fedlab.run(settings(privacy=PRIVATE), method=method, data=samples)


@pytest.mark.parametrize("local", [[], ["norm"]])
def test_batch_statistics_are_refused_wherever_they_stay(
    local: list[str], settings: Settings, samples: fedlab.Dataset
) -> None:
    model = {"name": "convnet", "width": 4, "depth": 2, "norm": "batch"}
    with pytest.raises(ConfigError, match=r"model\.body\.1 \(BatchNorm2d") as refused:
        fedlab.run(settings(privacy=PRIVATE, model=model, exchange__local=local), data=samples)
    assert "model.norm: group" in refused.value.fix


def test_batch_statistics_of_a_frozen_teacher_are_constants(settings: Settings, samples: fedlab.Dataset) -> None:
    class Taught(Careful):
        per_example_loss = True

        def build(self, task: Task) -> dict[str, nn.Module]:
            size = task.input_shape[1] * task.input_shape[2]
            teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, task.num_classes))
            return {"teacher": teacher, "model": task.model()}

        def exchange(self, plan: Plan) -> tuple[Group, ...]:
            return (Group("teacher", ("teacher",), mode="once"), Group("model", ("model",)))

        def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
            with torch.no_grad():
                target = networks["teacher"](batch["image"]).softmax(1)
            return {"kd": F.cross_entropy(networks["model"](batch["image"]), target)}

        def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
            output: Tensor = networks["model"](batch["image"])
            return output

    run = fedlab.run(settings(privacy=PRIVATE, federation__rounds=1), method=Taught, data=samples)
    assert spent(run)[0]["epsilon"] > 0


def test_a_run_without_noise_says_that_nothing_is_guaranteed(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(privacy={**PRIVATE, "noise_multiplier": 0.0}, training__drop_last=True, federation__rounds=1)
    run = fedlab.run(config, data=samples)
    assert spent(run)[0]["epsilon"] is None
    assert any("nothing is guaranteed" in text for text in run.history.warnings)
    assert any("drop_last" in text for text in run.history.warnings)


def test_an_impossible_target_is_refused_before_the_run_exists(
    settings: Settings, samples: fedlab.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="noise multiplier below"):
        fedlab.run(settings(privacy={"name": "dp_sgd", "target_epsilon": 1e-3}), data=samples)
    assert not (tmp_path / "runs").exists()


def test_more_rounds_than_the_noise_was_made_for_are_refused(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(privacy={"name": "dp_sgd", "target_epsilon": 4.0}, federation__rounds=2)
    stopped = fedlab.run(config, data=samples, until=1)
    with pytest.raises(ConfigError, match="target_epsilon"):
        fedlab.resume(stopped.path, data=samples, rounds=3)
    assert spent(fedlab.resume(stopped.path, data=samples, rounds=2))[-1]["epsilon"] <= 4.0


def test_the_example_is_a_configuration_that_is_accepted() -> None:
    example = load_config(Path(__file__).resolve().parents[3] / "examples" / "dp_sgd.yaml")
    assert example.privacy is not None
    assert example.privacy.name == "dp_sgd"
    assert resolve(example).warnings == []
