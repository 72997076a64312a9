"""Clients trained as one batch do what they do alone, to float tolerance; what cannot be, is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.assembly import Assembly
from fedlab.clients.setup import ClientSetup
from fedlab.clients.vectorized.dropout import SeparateDropout
from fedlab.clients.vectorized.runtime import VectorizedRuntime
from fedlab.clients.vectorized.training import refusal
from fedlab.clients.work import Trained, WorkRequest
from fedlab.config import Config, parse
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Samples
from fedlab.method import Batch, BatchSpec, FitContext, Method, NotFiniteError, Step
from fedlab.methods.supervised.method import Supervised
from fedlab.protocol.instructions import Instructions

Settings = Mapping[str, Any]
CLIENTS = range(4)
SIZES = (23, 40, 9, 31)  # batches of ten: other counts and other last batches for every client


class Doubles(VectorizedRuntime):
    """In double precision, so that a difference in what is computed cannot pass for one in rounding."""

    def __init__(self, setup: ClientSetup, device: torch.device) -> None:
        super().__init__(setup, device)
        self.networks.double()
        self._live = self._local._live = self.networks.state_dict()

    def _columns(self, samples: Samples) -> dict[str, Tensor]:
        columns = super()._columns(samples)
        return {name: value.double() if value.is_floating_point() else value for name, value in columns.items()}


def dataset() -> fedlab.Dataset:
    rng = np.random.default_rng(0)
    count = sum(SIZES)
    labels = np.arange(count) % 3
    images = np.clip(rng.normal(0.25 + 0.25 * labels[:, None, None], 0.2, (count, 8, 8)), 0, 1).astype(np.float32)
    domains = np.repeat(np.arange(4), SIZES)
    return fedlab.from_arrays(images, labels, images[:4], labels[:4], domains=(domains, np.arange(4)))


CPU = torch.device("cpu")
FIRST = Instructions(1, 2)


def setup(tmp_path: Path, method: Method | None = None, **sections: Any) -> ClientSetup:
    raw = {
        "method": {"name": "supervised"},
        "model": {"name": "simple_cnn"},
        "data": {"source": {"name": "digits"}, "partition": [{"name": "domain"}]},
        "training": {"lr": 0.05, "batch_size": 10, "local_epochs": 2},
        "engine": {"name": "inline", "device": "cpu"},
    }
    config = parse(Config, {key: {**raw.get(key, {}), **sections.get(key, {})} for key in {*raw, *sections}})
    federated = FederatedData(dataset(), config.data, config.seed)
    components = Assembly(config, method).components()
    return ClientSetup(components, federated, tmp_path / "clients", tmp_path / "cache")


def round_of(
    runtime: VectorizedRuntime,
    order: Instructions,
    settings: Settings,
    control: bool,
    versions: Mapping[int, int | None],
) -> tuple[dict[int, Trained], dict[int, dict[str, Tensor]]]:
    """A round of all clients, copied, and their states afterwards."""
    exchange = runtime.exchanges.enter(order.plan)
    start = {name: value.clone() for name, value in type(runtime)(runtime.setup, CPU).networks.state_dict().items()}
    arrays = {name: start[name].numpy() for name in exchange.down}
    if control:
        generator = torch.Generator().manual_seed(5)
        for name, p in runtime.networks.named_parameters():
            arrays[f"control/{name}"] = torch.randn(p.shape, generator=generator, dtype=p.dtype).numpy() * 0.01
    answers, request = {}, WorkRequest(order, arrays, {}, settings)
    if "together" in settings:
        runtime.vectorize(versions, request)
        counting = runtime.setup.config.training.schedule != "constant"
        assert runtime._outcome is not None
        assert runtime._outcome.clients == ({1, 3} if counting else {*CLIENTS})  # 1 and 3 do four batches an epoch
    for client, version in versions.items():
        trained = runtime.train(client, request, version)
        answers[client] = replace(trained, arrays={name: value.clone() for name, value in trained.arrays.items()})
    assert runtime._outcome is None or not runtime._outcome.clients
    return answers, {c: dict(runtime.store.load(c, a.version).items()) for c, a in answers.items()}


PLAIN: dict[str, Any] = {}
CASES: dict[str, tuple[Settings, Settings]] = {
    "sgd": ({"training": {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5}}, PLAIN),
    "adam, each tensor clipped": ({"training": {"optimizer": "adam", "clip_norm": 0.05, "clip": "tensor"}}, PLAIN),
    "adamw, batch norm": ({"model": {"name": "convnet", "norm": "batch"}, "training": {"optimizer": "adamw"}}, PLAIN),
    "linear schedule": ({"training": {"schedule": "linear", "warmup_steps": 3}}, PLAIN),
    "a local head": ({"exchange": {"local": ["model.head.*"]}}, PLAIN),
    "few steps": ({"training": {"local_steps": 3}}, PLAIN),
    "fedprox": ({}, {"proximal-mu": 0.5}),
    "scaffold": ({}, {"algorithm": "scaffold"}),
    "feddyn": ({"training": {"momentum": 0.5}}, {"algorithm": "feddyn", "alpha": 0.1}),
    "fednova": ({"training": {"momentum": 0.5}}, {"algorithm": "fednova", "proximal-mu": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_round_together_is_a_round_alone(tmp_path: Path, case: str) -> None:
    sections, settings = CASES[case]
    order = Instructions(2, 5, steps={"1": 2})  # the virtual clock stops client 1 early
    both = []
    for together in ({}, {"together": 1.0}):
        runtime = Doubles(setup(tmp_path / str(len(both)), **sections), CPU)
        versions: dict[int, int | None] = dict.fromkeys(CLIENTS)
        answers, _ = round_of(runtime, order, {**settings, **together}, case == "scaffold", versions)
        later = {client: answer.version for client, answer in answers.items()}  # states that are not empty any more
        both.append(round_of(runtime, replace(order, round=3), {**settings, **together}, case == "scaffold", later))
    (alone, states), (together_, states_together) = both
    for client in CLIENTS:
        one, other = alone[client], together_[client]
        assert (one.examples, one.version) == (other.examples, other.version)
        torch.testing.assert_close(one.arrays, other.arrays, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(states[client], states_together[client], rtol=1e-6, atol=1e-8)
        del one.metrics["seconds"], other.metrics["seconds"]
        assert other.metrics == pytest.approx(one.metrics, rel=1e-6)


def test_mixed_precision_is_as_close_as_its_roundings(tmp_path: Path) -> None:
    both = []
    for together in ({}, {"together": 1.0}):
        runtime = VectorizedRuntime(
            setup(tmp_path / str(len(both)), training={"precision": "bfloat16", "local_steps": 2}), CPU
        )
        both.append(round_of(runtime, FIRST, together, False, dict.fromkeys(CLIENTS))[0])
    for client in CLIENTS:
        torch.testing.assert_close(both[0][client].arrays, both[1][client].arrays, rtol=0.02, atol=2e-3)


def test_what_clients_of_other_sizes_do_together_is_the_same_every_time(tmp_path: Path) -> None:
    twice = []
    for folder in ("a", "b"):
        runtime = VectorizedRuntime(setup(tmp_path / folder), CPU)
        arrays = {name: value.numpy().copy() for name, value in runtime.networks.state_dict().items()}
        runtime.vectorize(dict.fromkeys(CLIENTS), WorkRequest(FIRST, arrays))
        assert runtime._outcome is not None
        fitted = {client: runtime._outcome.take(client, FIRST) for client in CLIENTS}
        twice.append({client: dict(found.tensors) for client, found in fitted.items() if found is not None})
    assert twice[0].keys() == set(CLIENTS)
    for client, name in itertools.product(CLIENTS, twice[0][0]):
        assert torch.equal(twice[0][client][name], twice[1][client][name])


class Patchy(Supervised):
    """The loss of samples of class 0 is infinite where `infinite` says so."""

    functional_loss = True
    infinite = False

    def batch_spec(self, plan: Any) -> BatchSpec:
        return BatchSpec(collate=lambda batch, generator: {**batch, "scale": torch.ones(len(batch["label"]))})

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        each = F.cross_entropy(networks["model"](batch["image"]), batch["label"], reduction="none")
        return {"ce": (each / (batch["domain"] != 2)).mean()}


def test_a_client_whose_loss_is_infinite_is_the_only_one_to_fail(tmp_path: Path) -> None:
    runtime = VectorizedRuntime(setup(tmp_path, Patchy()), CPU)
    arrays = {name: value.numpy().copy() for name, value in runtime.networks.state_dict().items()}
    runtime.vectorize(dict.fromkeys(CLIENTS), WorkRequest(FIRST, arrays))
    for client in CLIENTS:
        if client == 2:
            with pytest.raises(NotFiniteError, match=r"ce = inf.*training\.clip_norm"):
                runtime.train(client, WorkRequest(FIRST, arrays), None)
        else:
            trained = runtime.train(client, WorkRequest(FIRST, arrays), None)
            assert all(bool(value.isfinite().all()) for value in trained.arrays.values())


class Noisy(Supervised):
    functional_loss = True

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return super().loss(networks, {**batch, "image": batch["image"] + torch.randn_like(batch["image"])}, step)


class Skipping(Supervised):
    functional_loss = True

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize(("method", "message"), [(Noisy, "random"), (Skipping, "skips a batch")])
def test_a_loss_that_cannot_be_batched_says_so_for_every_client(
    tmp_path: Path, method: type[Method], message: str
) -> None:
    runtime = VectorizedRuntime(setup(tmp_path, method()), CPU)
    arrays = {name: value.numpy().copy() for name, value in runtime.networks.state_dict().items()}
    runtime.vectorize(dict.fromkeys(CLIENTS), WorkRequest(FIRST, arrays))
    for client in CLIENTS:
        with pytest.raises(Exception, match=message):
            runtime.train(client, WorkRequest(FIRST, arrays), None)


class Inherits(Supervised):
    pass


class Fits(Supervised):
    functional_loss = True

    def fit(self, ctx: FitContext) -> None:
        ctx.train()


class Steps(Supervised):
    functional_loss = True

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        pass


class Samples_(Supervised):
    functional_loss = True

    def batch_spec(self, plan: Any) -> BatchSpec:
        return BatchSpec(sampler=lambda columns, size, generator: [torch.arange(size)])


def test_what_is_refused_beforehand(tmp_path: Path) -> None:
    constant = setup(tmp_path).config.training
    cosine = constant.model_copy(update={"schedule": "cosine"})
    assert refusal(Supervised(), constant, {}) is None
    assert refusal(Supervised(), cosine, {}) is None
    assert refusal(Samples_(), constant, {}) is None
    reasons: dict[Callable[[], Method], str] = {
        Inherits: "does not declare functional_loss",
        Fits: "has a fit() of its own",
        Steps: "has a after_step() of its own",
        Samples_: "draws its own batches",
    }
    for method, reason in reasons.items():
        assert reason in (refusal(method(), cosine, {}) or "")


def test_dropout_draws_what_each_client_would_have_drawn() -> None:
    x = torch.randn(3, 5, 4).movedim(1, 2)  # not laid out as its parts would be

    def of_one(row: Tensor) -> Tensor:
        hidden = F.dropout(row, 0.3)
        return F.dropout(F.dropout(hidden, 0.5), 0.9, training=False)

    with SeparateDropout([torch.Generator().manual_seed(seed) for seed in range(3)]):
        together = torch.func.vmap(of_one, randomness="error")(x)
    for seed in range(3):
        torch.manual_seed(seed)
        assert torch.equal(of_one(x[seed].contiguous()), together[seed])
    with SeparateDropout([torch.Generator() for _ in range(3)]):
        assert not torch.func.vmap(lambda row: F.dropout(row, 1.0), randomness="error")(x).any()
        with pytest.raises(RuntimeError, match="the same for all clients"):
            torch.func.vmap(lambda row: row + F.dropout(torch.ones(4), 0.5), randomness="error")(x)
