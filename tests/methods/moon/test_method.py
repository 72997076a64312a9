from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.assembly import make_method, make_task
from fedlab.config import Config, parse
from fedlab.distill.model_contrast import model_contrastive
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.start import configure
from fedlab.method import Batch, ClientState, Method, Step, Task
from fedlab.methods.moon.method import Moon
from fedlab.methods.moon.networks import ProjectionNetwork
from fedlab.models import headless
from tests.methods.states import same, weights

Start = Callable[..., fedlab.Run]
SKEWED = "data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]"
BASE = {"method": "moon", "data": {"source": "digits"}}


@pytest.fixture
def lab(bench: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``lab(mu=1, model=…)``: a `Bench` of this method whose batches hold all samples."""
    kind = type(bench())

    def make(model: Mapping[str, Any] | None = None, **settings: Any) -> Any:
        sections = {"model": model} if model else {}
        return kind(
            tmp_path, {"name": "moon", **settings}, training={"lr": 0.1, "batch_size": 512}, **sections
        )  # fmt: skip

    return make


# the network


@pytest.mark.parametrize("model", ["convnet", "logistic", "resnet18", "simple_cnn"])
def test_every_model_gets_a_projection_under_its_classifier(model: str) -> None:
    config = parse(Config, {**BASE, "method": {"name": "moon", "projection_dim": 7}, "model": model})
    columns = {"image": ("float32", (1, 25, 25)), "label": ("int64", ())}
    task = make_task(config, columns, ["a", "b", "c"], 2)
    network: Any = make_method(config.method).build(task)["model"].eval()
    x = torch.randn(2, 1, 25, 25)
    h = network.encoder.features(x)
    z = network.projection(h)
    assert h.shape == (2, network.encoder.feature_dim)
    assert z.shape == (2, 7)
    assert torch.equal(network.features(x), z)
    assert torch.equal(network(x), network.head(z))
    assert network(x).shape == (2, 3)
    assert [n for n in network.state_dict() if "head" in n] == ["head.weight", "head.bias"]


def test_a_model_without_features_is_refused(lab: Callable[..., Any]) -> None:
    bare = lab()
    with pytest.raises(ConfigError, match="it lacks features, feature_dim, head"):
        bare.method.build(replace(bare.task, make_model=lambda *_: nn.Flatten()))


# the loss in a client's rounds


def test_a_first_round_is_plain_training(lab: Callable[..., Any]) -> None:
    moon, plain = lab(mu=5), lab(mu=0)
    first, second = moon.client(), plain.client()
    moon.method.fit(first)
    plain.method.fit(second)
    assert first.metrics["contrastive"] == 0.0
    assert "contrastive" not in second.metrics
    assert same(moon.weights(), plain.weights())
    assert len(second.state) == 0


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_loss_compares_with_the_received_and_the_clients_own_last_model(lab: Callable[..., Any], norm: str) -> None:
    bench = lab(mu=2.0, model={"name": "convnet", "width": 8, "depth": 2, "norm": norm})
    data, state = bench.data(), ClientState()
    bench.method.fit(bench.client(data, state=state, round=1))
    own = copy.deepcopy(bench.networks["model"]).eval()
    with torch.no_grad():
        for p in bench.networks["model"].parameters():  # the others' part of the average
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    received = copy.deepcopy(bench.networks["model"]).eval()
    ctx = bench.client(data, state=state, round=2)
    bench.method.fit(ctx)

    training = copy.deepcopy(received).train()
    with torch.no_grad():
        z, z_global, z_own = (m.features(data["image"]) for m in (training, received, own))
        ce = F.cross_entropy(training.head(z), data["label"])
    expected = 2.0 * float(model_contrastive(z, z_global, z_own[:, None], 0.5))
    assert expected > 0.01
    assert ctx.metrics["contrastive"] == pytest.approx(expected, rel=1e-4)
    assert ctx.metrics["ce"] == pytest.approx(float(ce), rel=1e-4)


def test_a_step_follows_both_gradients(lab: Callable[..., Any]) -> None:
    bench = lab(mu=2.0, buffer=1)
    data, state = bench.data(), ClientState()
    bench.method.fit(bench.client(data, state=state, round=1))
    before = bench.weights()
    model = copy.deepcopy(bench.networks["model"])
    with torch.no_grad():  # received = own last model here: z = z_glob = z_prev
        z_fixed = copy.deepcopy(model).eval().features(data["image"])
    z = model.features(data["image"])
    loss = F.cross_entropy(model.head(z), data["label"]) + 2 * model_contrastive(z, z_fixed, z_fixed[:, None])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    ctx = bench.client(data, state=state, round=2)
    bench.method.fit(ctx)
    assert ctx.metrics["contrastive"] == pytest.approx(2 * 0.693147, rel=1e-5)
    for (name, p), gradient in zip(bench.networks["model"].named_parameters(), gradients, strict=True):
        torch.testing.assert_close(p.detach(), before[f"model.{name}"] - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_frozen_models_are_in_evaluation_mode_and_move_nothing(lab: Callable[..., Any]) -> None:
    bench = lab(model={"name": "convnet", "width": 8, "depth": 2, "norm": "batch"})
    state = ClientState()
    bench.method.fit(bench.client(state=state, round=1))
    kept, weights = {name: value.clone() for name, value in state.items()}, bench.weights()
    ctx = bench.client(state=state, round=2)
    found = bench.method._representations(ctx)
    assert same(bench.weights(), weights)
    assert same(dict(state), kept)
    assert found["z_global"].shape == (24, 256)
    assert found["z_previous"].shape == (24, 1, 256)
    assert not any(value.requires_grad for value in found.values())
    # of a sample alone as in company: no statistics of the batch
    alone = bench.networks["model"].features(ctx.data["image"][:1])
    torch.testing.assert_close(found["z_global"][:1], alone.detach(), rtol=1e-4, atol=1e-5)


def test_the_buffer_holds_the_last_models_and_drops_the_oldest(lab: Callable[..., Any]) -> None:
    bench, state = lab(buffer=2, model={"name": "convnet", "width": 8, "depth": 2, "norm": "batch"}), ClientState()
    history = []
    for round in (1, 2, 3):
        ctx = bench.client(state=state, round=round)
        bench.method.fit(ctx)
        history.append(bench.weights())
    for name in history[0]:
        held = state[f"previous/{name.removeprefix('model.')}"]
        assert torch.equal(held, torch.stack([history[1][name], history[2][name]]))
    assert not torch.equal(history[1]["model.head.weight"], history[2]["model.head.weight"])


# whole runs


class Plain(Method):
    """Federated averaging of MOON's network."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        encoder, width = headless(task.model(), task.model_name)
        return {"model": ProjectionNetwork(encoder, width, 256, task.num_classes)}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](batch["image"]), batch["label"])}


def test_without_mu_it_is_averaging_of_the_same_network_bit_for_bit(run: Start) -> None:
    bare, plain = run("method={name: moon, mu: 0}"), run("method={name: supervised}", method=Plain)
    assert same(weights(bare), weights(plain))
    assert bare.metrics["clients"] == plain.metrics["clients"]


def test_scaffold_corrects_its_steps(run: Start) -> None:
    plain, corrected = (
        run("method={name: moon, mu: 1.0}", SKEWED, "federation.rounds=3", f"federation.strategy={strategy}")
        for strategy in ("fedavg", "scaffold")
    )
    assert not same(weights(corrected), weights(plain))
    assert all(torch.isfinite(value).all() for value in weights(corrected).values())


def test_only_weights_travel_and_the_loss_starts_in_a_clients_second_round(run: Start) -> None:
    done = run("method={name: moon, mu: 1.0}", "federation.sampler.fraction=0.5", SKEWED)
    size = sum(value.numel() * value.element_size() for value in weights(done).values())
    rounds = done.history.rounds
    assert [r["bytes"] for r in rounds] == [{"model": {"down": 2 * size, "up": 2 * size}}] * 5
    met: set[int] = set()
    for r in rounds:
        assert (r["train"]["contrastive"] > 0) == bool(met & set(r["clients"]))
        met |= set(r["clients"])
    assert len(met) > 2


def test_it_learns_the_digits(run: Start) -> None:
    done = run(
        "method={name: moon, mu: 1.0}", "federation.rounds=5", "training.lr=0.3", "training.batch_size=8",
        "training.local_epochs=2", "evaluation.every=5",
    )  # fmt: skip
    assert done.metrics["clients"]["grey"]["accuracy"] > 0.45


# settings


def test_defaults_are_the_papers() -> None:
    s = Moon().settings
    assert (s.mu, s.temperature, s.projection_dim, s.buffer) == (5.0, 0.5, 256, 1)
    assert Moon(parse(Moon.Settings, configure("moon").method.settings)).check(configure("moon")) == []


@pytest.mark.parametrize(
    ("settings", "rounds", "warning"),
    [({"mu": 0}, 5, "plain training"), ({}, 1, "never acts"), ({"buffer": 9}, 5, "never filled")],
)
def test_settings_without_effect_are_pointed_out(settings: dict[str, Any], rounds: int, warning: str) -> None:
    method = make_method(parse(Config, {**BASE, "method": {"name": "moon", **settings}}).method)
    (text,) = method.check(parse(Config, {**BASE, "federation": {"rounds": rounds}}))
    assert warning in text


@pytest.mark.parametrize("setting", [{"mu": -1}, {"temperature": 0}, {"buffer": 0}, {"projection_dim": 0}])
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=f"method.{next(iter(setting))}"):
        make_method(parse(Config, {**BASE, "method": {"name": "moon", **setting}}).method)
