"""evaluation.personalized: clients are evaluated before and after local training on their own samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import fedlab
from benchmarks.hashes import digest
from fedlab.errors import ConfigErrors
from fedlab.method import FitContext
from fedlab.methods.supervised.method import Supervised
from fedlab.storage.checkpoint import load_checkpoint

ON = "evaluation.personalized=true"
SMALL: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {
        "source": {"name": "digits", "domains": ["handwritten"], "train_per_domain": 160, "test_per_domain": 80},
        "partition": [{"name": "dirichlet", "clients": 4, "alpha": 0.1, "min_samples": 2}],
    },
    "training": {"batch_size": 16, "lr": 0.1},
    "federation": {"rounds": 2},
    "evaluation": {"every": 2},
    "engine": {"name": "inline", "device": "cpu"},
}
Start = Callable[..., fedlab.Run]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def make(*overrides: str, **arguments: Any) -> fedlab.Run:
        tracking = {"folder": str(tmp_path), "console": "quiet", "tensorboard": False}
        return fedlab.run({**SMALL, "tracking": tracking}, overrides=overrides, **arguments)

    return make


def weights(run: fedlab.Run) -> str:
    return digest(load_checkpoint(run.checkpoint)[0])


def values(event: Mapping[str, Any], scope: str) -> dict[str, float]:
    return {name: value for name, value in event[scope].items() if name.startswith("personalized_")}


class Majority(Supervised):
    """Local training makes the model predict the client's most frequent class, whatever the image."""

    def fit(self, ctx: FitContext) -> None:
        model: Any = ctx.networks["model"]
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
            model.head.bias[int(ctx.data["label"].bincount().argmax())] = 5.0


def test_the_values_are_those_of_the_model_after_the_clients_own_training(start: Start) -> None:
    class Counting(Majority):
        labels: ClassVar[list[tuple[list[int], list[int]]]] = []

        def evaluate(self, ctx: Any) -> Any:
            if not ctx.preflight:
                type(self).labels.append((ctx.train_data()["label"].tolist(), ctx.data["label"].tolist()))
            return super().evaluate(ctx)

    run = start(ON, method=Counting)
    found = run.metrics
    shares, hits, counts = [], 0, 0
    for train, test in Counting.labels[::2]:  # each client is evaluated twice
        right = sum(label == int(np.bincount(train).argmax()) for label in test)
        shares.append(right / len(test))
        hits, counts = hits + right, counts + len(test)
    after = [found["clients"][name]["personalized_accuracy"] for name in found["clients"]]
    assert after == pytest.approx(shares)
    assert found["mean"]["personalized_accuracy"] == pytest.approx(np.mean(shares))
    assert found["pooled"]["personalized_accuracy"] == pytest.approx(hits / counts)
    assert found["mean"]["personalized_accuracy"] > found["mean"]["accuracy"]


def test_nothing_of_it_is_kept(start: Start) -> None:
    off, on = start(), start(ON)
    assert weights(off) == weights(on)
    assert not values(off.metrics, "mean")
    for scope in ("mean", "pooled"):
        assert on.metrics[scope].keys() == off.metrics[scope].keys() | values(on.metrics, scope).keys()
        assert {name: on.metrics[scope][name] for name in off.metrics[scope]} == off.metrics[scope]
    assert on.metrics["mean"]["personalized_accuracy"] > on.metrics["mean"]["accuracy"] + 0.05


def test_without_a_step_both_are_the_same(start: Start) -> None:
    found = start(ON, "training.lr=0.1", "federation.rounds=1", method=Idle).metrics
    for scope in ("mean", "pooled"):
        assert {
            f"personalized_{name}": value for name, value in found[scope].items() if "personalized" not in name
        } == (values(found, scope))


class Idle(Supervised):
    def fit(self, ctx: FitContext) -> None:
        pass


def test_unseen_clients_are_adapted_too(start: Start) -> None:
    found = start(ON, "data.unseen=0.25").metrics
    (name,) = found["unseen_clients"]
    assert values(found, "unseen")
    assert found["unseen"]["personalized_accuracy"] == found["clients"][name]["personalized_accuracy"]
    trained = [client for client in found["clients"] if client != name]
    mean = np.mean([found["clients"][client]["personalized_accuracy"] for client in trained])
    assert found["mean"]["personalized_accuracy"] == pytest.approx(mean)


@pytest.mark.usefixtures("ray_workers")
def test_workers_give_the_same_values(start: Start) -> None:
    one, two = start(ON), start(ON, "engine.name=ray", "engine.workers=2", "engine.chunk=1")
    assert one.metrics["clients"] == two.metrics["clients"]
    assert one.metrics["pooled"] == two.metrics["pooled"]


def test_methods_find_the_servers_tensors_and_their_own_state(start: Start) -> None:
    """VHL trains on images of the server, MOON contrasts with models that a client has kept."""
    small = ["model={name: convnet, width: 4, depth: 1}", "data.source.train_per_domain=60", ON]
    vhl = start("method={name: vhl, images_per_class: 2}", *small)
    moon = start("method={name: moon, projection_dim: 4}", *small)
    for run in (vhl, moon):
        assert 0 <= values(run.metrics, "mean")["personalized_accuracy"] <= 1
    assert weights(moon) == weights(start("method={name: moon, projection_dim: 4}", *small[:-1]))


def test_flowers_own_strategies_take_it(start: Start) -> None:
    assert values(start(ON, "federation.strategy=flower.FedAvg").metrics, "mean")


@pytest.mark.parametrize(
    "privacy", ["{name: dp_sgd, clip: 1.0, noise_multiplier: 1.0}", "{name: central, clip: 1.0, noise_multiplier: 1.0}"]
)
def test_it_is_refused_with_differential_privacy(start: Start, privacy: str) -> None:
    with pytest.raises(ConfigErrors, match=r"evaluation\.personalized[\s\S]*no noise is added"):
        start(ON, f"privacy={privacy}")
