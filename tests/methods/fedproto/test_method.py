from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fedlab
from fedlab.assembly import make_method
from fedlab.clients.state import StateStore
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.methods.fedproto.method import FedProto, FedProtoSettings
from fedlab.storage.checkpoint import load_checkpoint
from tests.methods.tiny import Tiny, client

Start = Callable[..., fedlab.Run]
SKEWED = "data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]"
BASE: dict[str, Any] = {"method": "fedproto", "data": {"source": "digits"}}
TWO = "[{name: convnet, width: 8, depth: 2}, {name: convnet, width: 8, depth: 2, norm: group}]"


def fedproto(**settings: Any) -> FedProto:
    return FedProto(parse(FedProtoSettings, settings))


def shared(c: float) -> dict[str, Tensor]:
    return {"prototypes": torch.tensor([[c], [0.0]]), "known": torch.tensor([True, False])}


def test_a_step_follows_cross_entropy_and_the_distance_to_the_prototype() -> None:
    """x = 1, y = 0, z = 2, logits (2, −2): the CE moves the body by 2(p − 1) with p = 1 / (1 + e⁻⁴); the distance
    λ (z − 5)² by 2λ (2 − 5). The head is moved by the CE alone."""
    model = Tiny(2.0, (1.0, -1.0))
    ctx = client(fedproto(lam=0.5), {"model": model}, [1.0], [0], shared=shared(5.0))
    ctx.method.fit(ctx)
    g = 1 / (1 + math.exp(-4)) - 1
    assert ctx.metrics["distance"] == pytest.approx(0.5 * 9)
    assert model.body.weight.item() == pytest.approx(2 - 0.1 * (2 * g + 2 * 0.5 * (2 - 5)), abs=1e-6)
    assert model.head.weight.flatten().tolist() == pytest.approx([1 - 0.2 * g, -1 + 0.2 * g], abs=1e-6)


def test_before_there_are_prototypes_it_is_plain_training() -> None:
    ctx = client(fedproto(lam=0.5), {"model": Tiny(2.0, (1.0, -1.0))}, [1.0], [0])
    ctx.method.fit(ctx)
    assert set(ctx.metrics) == {"ce"}


def test_a_client_sends_the_means_of_its_trained_features() -> None:
    model = Tiny(2.0, (0.0, 0.0))  # a head of 0 gives the body no gradient
    ctx = client(fedproto(), {"model": model}, [1.0, 3.0, 4.0], [0, 0, 1])
    ctx.method.fit(ctx)
    sent = ctx.method.client_result(ctx)
    assert sent["classes"].tolist() == [0, 1]
    assert sent["means"].flatten().tolist() == pytest.approx([4.0, 8.0])
    assert not sent["means"].requires_grad


def test_a_class_that_nobody_holds_in_a_round_keeps_its_prototype(bench: Callable[..., Any], tmp_path: Any) -> None:
    lab = type(bench())(tmp_path, {"name": "fedproto"})
    first = {0: {"classes": torch.tensor([0, 1]), "means": torch.tensor([[2.0], [4.0]])}}
    lab.method.server_update(lab.server(1, results=first))
    second = {1: {"classes": torch.tensor([0, 3]), "means": torch.tensor([[6.0], [8.0]])}}
    lab.method.server_update(lab.server(2, results=second))
    assert lab.shared["prototypes"].flatten().tolist() == [6.0, 4.0, 0.0, 8.0]
    assert lab.shared["known"].tolist() == [True, True, False, True]
    before = dict(lab.shared)
    lab.method.server_update(lab.server(3, results={0: {}}))
    assert all(lab.shared[name] is before[name] for name in before)


# whole runs


def test_only_prototypes_travel_and_the_distance_begins_in_round_two(run: Start) -> None:
    done = run("method={name: fedproto}", SKEWED)
    width = 8 * 4 * 4
    rounds = done.history.rounds
    assert all(set(r["bytes"]) <= {"shared", "results"} for r in rounds)
    assert rounds[0]["bytes"].get("shared", {"down": 0})["down"] == 0
    assert rounds[1]["bytes"]["shared"] == {"down": 4 * (10 * width * 4 + 10), "up": 0}
    assert ["distance" in r["train"] for r in rounds] == [False, True, True, True, True]
    tensors, _ = load_checkpoint(done.checkpoint)
    assert tensors["shared/prototypes"].shape == (10, width)


def test_clients_may_have_different_models_and_predict_by_prototypes(run: Start) -> None:
    done = run(f"method={{name: fedproto, models: {TWO}, predict: prototypes}}", SKEWED)
    states = [StateStore(done.folder.clients).latest(i) or {} for i in range(4)]
    trained = [{name.split(".")[0] for name in state if name.startswith("network/")} for state in states]
    assert trained == [{"network/model"}, {"network/model_2"}] * 2
    assert all("prototypes" in state for state in states)
    heads = run(f"method={{name: fedproto, models: {TWO}}}", SKEWED)
    assert heads.metrics["clients"] != done.metrics["clients"]
    assert heads.history.rounds[-1]["train"]["ce"] == done.history.rounds[-1]["train"]["ce"]


def test_models_with_features_of_different_lengths_are_refused(run: Start) -> None:
    models = "[{name: convnet, width: 8, depth: 2}, {name: convnet, width: 4, depth: 2}]"
    with pytest.raises(ConfigError, match="the same length"):
        run(f"method={{name: fedproto, models: {models}}}", SKEWED)


@pytest.mark.parametrize(
    ("settings", "rounds", "warning"), [({"lam": 0}, 5, "nothing of each other"), ({}, 1, "before the second")]
)
def test_settings_without_effect_are_pointed_out(settings: dict[str, Any], rounds: int, warning: str) -> None:
    (text,) = fedproto(**settings).check(parse(Config, {**BASE, "federation": {"rounds": rounds}}))
    assert warning in text
    assert fedproto().check(parse(Config, BASE)) == []


@pytest.mark.parametrize("settings", [{"lam": -1}, {"predict": "nothing"}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=f"method.{next(iter(settings))}"):
        make_method(parse(Config, {**BASE, "method": {"name": "fedproto", **settings}}).method)
