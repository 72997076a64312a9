"""Flower's strategies and users' own run unchanged in the round loop, and do what their papers say."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

import fedlab
from fedlab.clients.corrections import Proximal, Start, requested
from fedlab.config import Component, Config
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.method import ClientState
from fedlab.protocol.messages import array_record, metric_record, required, to_numpy
from fedlab.server.strategies import STRATEGIES, check_participants, make_strategy
from tests.forks import Forks

Settings = Callable[..., Config]
Arrays = dict[str, np.ndarray]
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NEEDED = {"flower.QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "ce"}}


class Watched(FedAvg):
    """FedAvg that remembers the clients' weights and counts, and what it started from."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Arrays] = []
        self.examples: list[float] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, *rest: object) -> Iterable[Message]:
        self.start_arrays = {name: values.astype(np.float64) for name, values in to_numpy(arrays, copy=True).items()}
        return super().configure_train(server_round, arrays, *rest)  # type: ignore[arg-type]  # passed on as they came

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        for reply in replies:
            arrays = to_numpy(required(array_record, reply.content, "arrays"), copy=True)
            self.clients.append({name: values.astype(np.float64) for name, values in arrays.items()})
            self.examples.append(float(str(required(metric_record, reply.content, "metrics")["num-examples"])))
        return super().aggregate_train(server_round, replies)


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> Iterator[None]:
    """Flower collects garbage at every array it reads; it need not look at all that pytest has gathered by now."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def watched(settings: Settings, samples: fedlab.Dataset) -> Watched:
    """What the four clients send in round 1, before any strategy has had its say."""
    strategy = Watched()
    fedlab.run(settings(federation__rounds=1, **UNEVEN), strategy=strategy, data=samples)
    assert len(strategy.clients) == 4
    assert len(set(strategy.examples)) > 1
    return strategy


UNEVEN = {"data__partition": [{"name": "dirichlet", "clients": 4, "alpha": 1.0}]}


def weights(run: fedlab.Run) -> Arrays:
    return {name: value.numpy() for name, value in run.model.state_dict().items()}


def assert_close(found: Arrays, expected: Arrays) -> None:
    assert set(expected) <= set(found)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


def mean(clients: list[Arrays], weight: list[float]) -> Arrays:
    return {name: np.average([client[name] for client in clients], axis=0, weights=weight) for name in clients[0]}


def by_hand(name: str, seen: Watched) -> Arrays:
    start, clients = seen.start_arrays, seen.clients
    if name == "flower.FedMedian":
        return {key: np.median([client[key] for client in clients], axis=0) for key in start}
    if name == "flower.Krum":  # none malicious of four: the sum over the two nearest neighbors
        flat = [np.concatenate([client[key].ravel() for key in start]) for client in clients]
        distances = [sorted(float(np.square(a - b).sum()) for b in flat) for a in flat]  # the first is to itself
        scores = [sum(nearest[1:3]) for nearest in distances]
        return clients[int(np.argmin(scores))]
    average = mean(clients, seen.examples)
    if name == "flower.FedAdam":  # Flower counts the first round as Adam's second step
        eta, beta_1, beta_2, tau = 0.05, 0.9, 0.99, 1e-3
        rate = eta * np.sqrt(1 - beta_2**2) / (1 - beta_1**2)
        step = {key: average[key] - start[key] for key in start}
        return {
            key: start[key] + rate * (1 - beta_1) * d / (np.sqrt((1 - beta_2) * d**2) + tau) for key, d in step.items()
        }
    return average


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fedavg", {}),
        ("flower.FedAvg", {}),
        ("flower.FedMedian", {}),
        ("flower.Krum", {"num_malicious_nodes": 0}),
        ("flower.FedAdam", {"eta": 0.05}),
    ],
)
def test_the_first_round_is_what_the_formula_gives(
    name: str, arguments: dict[str, float], watched: Watched, settings: Settings, samples: fedlab.Dataset
) -> None:
    run = fedlab.run(
        settings(federation__rounds=1, federation__strategy={"name": name, **arguments}, **UNEVEN), data=samples
    )
    assert_close(weights(run), by_hand(name, watched))


def test_flowers_average_is_the_exact_one_up_to_rounding(settings: Settings, samples: fedlab.Dataset) -> None:
    runs = [
        fedlab.run(settings(federation__strategy=name, **UNEVEN), data=samples) for name in ("fedavg", "flower.FedAvg")
    ]
    assert_close(weights(runs[0]), weights(runs[1]))
    assert runs[0].metrics["mean"] == pytest.approx(runs[1].metrics["mean"], rel=1e-4)


@pytest.mark.parametrize("name", sorted(name for name in STRATEGIES.builtin if name.startswith("flower.")))
def test_every_strategy_of_flower_runs_evaluates_and_repeats(
    name: str, settings: Settings, samples: fedlab.Dataset
) -> None:
    config = settings(federation__rounds=2, federation__strategy={"name": name, **NEEDED.get(name, {})})
    first, second = fedlab.run(config, data=samples), fedlab.run(config, data=samples)
    assert [round["clients"] for round in first.history.rounds] == [[0, 1, 2, 3]] * 2
    assert len(first.history.evaluations) == 2
    assert "accuracy" in first.metrics["strategy"]
    assert all(
        torch.equal(a, b) for a, b in zip(*(run.model.state_dict().values() for run in (first, second)), strict=True)
    )


def test_flowers_sampling_is_a_function_of_the_seed(settings: Settings, samples: fedlab.Dataset) -> None:
    half = {"name": "flower.FedAvg", "fraction_train": 0.5, "fraction_evaluate": 0.25, "min_evaluate_nodes": 1}

    def run(seed: int) -> fedlab.Run:
        return fedlab.run(settings(seed=seed, federation__rounds=6, federation__strategy=half), data=samples)

    def chosen(run: fedlab.Run) -> list[list[int]]:
        return [round["clients"] for round in run.history.rounds]

    first, again, other = run(0), run(0), run(1)
    assert all(len(clients) == 2 for clients in chosen(first))
    assert len({tuple(clients) for clients in chosen(first)}) > 1
    assert chosen(first) == chosen(again) != chosen(other)
    assert [set(e["clients"]) for e in first.history.evaluations] == [
        set(e["clients"]) for e in again.history.evaluations
    ]
    assert all(len(evaluation["clients"]) == 1 for evaluation in first.history.evaluations)


def test_a_strategy_may_leave_evaluation_out(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(federation__rounds=2, federation__strategy={"name": "flower.FedAvg", "fraction_evaluate": 0})
    run = fedlab.run(config, data=samples)
    assert len(run.history.rounds) == 2
    assert run.history.end["status"] == "completed"
    assert not any(evaluation["clients"] for evaluation in run.history.evaluations)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"min_train_nodes": 5}, "min_train_nodes"),
        ({"min_available_nodes": 9}, "min_available_nodes"),
        ({"min_evaluate_nodes": 5}, "min_evaluate_nodes"),
        ({"fraction_train": 2.0}, "fraction_train"),
        ({"fraction_train": 0}, "fraction_train"),
    ],
)
def test_more_clients_than_there_are_is_an_error_not_a_hang(
    arguments: dict[str, float], key: str, settings: Settings, samples: fedlab.Dataset
) -> None:
    config = settings(federation__strategy={"name": "flower.FedAvg", **arguments})
    with pytest.raises(ConfigError, match=rf"federation\.strategy\.{key} = "):
        fedlab.run(config, data=samples)
    assert not Path(config.tracking.folder).exists()


def test_wrapped_strategies_are_looked_into() -> None:
    inner = FedAvg(min_train_nodes=5)
    with pytest.raises(ConfigError, match="min_train_nodes"):
        check_participants(DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 2), 4)
    check_participants(DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 2), 5)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"name": "flower.FedAdamm"}, r"strategy\.name[\s\S]*did you mean 'flower\.FedAdam'"),
        ({"name": "flower.FedAdam", "ets": 1}, r"strategy\.ets[\s\S]*did you mean 'eta'"),
        ({"name": "flower.FedAdam", "eta": "x"}, r"strategy\.eta = 'x'[\s\S]*number"),
        ({"name": "flower.FedTrimmedAvg", "beta": 0.5}, r"strategy\.beta = 0\.5[\s\S]*range \[0, 0\.5\)"),
        ({"name": "flower.QFedAvg"}, r"strategy\.client_learning_rate[\s\S]*required"),
        ({"name": "flower.FedAvg", "arrayrecord_key": "w"}, r"strategy\.arrayrecord_key[\s\S]*no such key"),
        ({"name": "flower.Bulyan", "selection_rule": "x"}, r"strategy\.selection_rule[\s\S]*no such key"),
        ({"name": "fedprox", "mu": -1}, r"strategy\.mu = -1"),
        ({"name": "json:JSONDecoder"}, r"strategy\.name[\s\S]*Strategy"),
        ({"name": "no_such:Thing"}, r"strategy\.name[\s\S]*module:Class"),
    ],
)
def test_wrong_arguments_are_named(component: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        make_strategy(Component.model_validate(component))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """examples/custom_strategy.py, as a user beside it would import it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module("custom_strategy")
    sys.modules.pop("custom_strategy", None)


def test_a_strategy_of_ones_own_runs_as_object_class_and_name(
    example: ModuleType, settings: Settings, samples: fedlab.Dataset
) -> None:
    chosen = settings(federation__rounds=2, federation__strategy={"name": "custom_strategy:CentralMean", "left_out": 2})
    passed = settings(federation__rounds=2, federation__strategy={"name": "fedavg", "left_out": 2})
    runs = [
        fedlab.run(chosen, data=samples),
        fedlab.run(passed, strategy=example.CentralMean, data=samples),
        fedlab.run(settings(federation__rounds=2), strategy=example.CentralMean(left_out=2), data=samples),
    ]
    other = fedlab.run(settings(federation__rounds=2), strategy=example.CentralMean, data=samples)
    first, *rest = [run.model.state_dict() for run in runs]
    assert all(torch.equal(state[name], value) for state in rest for name, value in first.items())
    assert any(not torch.equal(other.model.state_dict()[name], value) for name, value in first.items())
    assert runs[1].config.federation.strategy == runs[0].config.federation.strategy
    for wrong, message in (({"left_out": -1}, "must not be negative"), ({"fraction_trian": 1}, "'fraction_train'")):
        with pytest.raises((ConfigError, ConfigErrors), match=message):
            make_strategy(Component(name="custom_strategy:CentralMean", **wrong))
    with pytest.raises(ConfigError, match=r"strategy = 5"):
        fedlab.run(settings(), strategy=5, data=samples)  # type: ignore[arg-type]  # that is the fault


def test_the_example_leaves_out_the_client_that_is_far_off(
    example: ModuleType, watched: Watched, settings: Settings, samples: fedlab.Dataset
) -> None:
    flat = [np.concatenate([values.ravel() for values in client.values()]) for client in watched.clients]
    off = int(np.argmax([np.linalg.norm(values - np.median(flat, axis=0)) for values in flat]))
    kept = [i for i in range(4) if i != off]
    expected = mean([watched.clients[i] for i in kept], [watched.examples[i] for i in kept])
    run = fedlab.run(settings(federation__rounds=1, **UNEVEN), strategy=example.CentralMean(left_out=1), data=samples)
    assert_close(weights(run), expected)


def test_the_example_runs_as_a_script(tmp_path: Path, forks: Forks) -> None:
    overrides = (
        "engine.name=inline", "model.width=4", "data.source.train_per_domain=30", "data.source.test_per_domain=10",
        "federation.rounds=1", "tracking.tensorboard=false", "tracking.console=quiet",
    )  # fmt: skip
    cache = {**os.environ, "FEDLAB_CACHE": str(tmp_path / "cache")}
    done = forks.run([EXAMPLES / "custom_strategy.py", *overrides], cwd=tmp_path, env=cache, reports=False)
    assert done.returncode == 0, done.stderr
    assert "mean accuracy" in done.stdout


def test_the_proximal_gradient_is_g_plus_mu_times_the_way_gone() -> None:
    w, other = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    correction = requested(Start({"w": w}, {}, ClientState(), {"proximal-mu": 0.5}))
    assert isinstance(correction, Proximal)
    optimizer = torch.optim.SGD([w, other], lr=1.0)
    w.grad, other.grad = torch.tensor([3.0, 4.0]), torch.tensor([1.0])
    correction.apply(optimizer)
    assert w.grad.tolist() == [3.0, 4.0]  # at the received weights there is nothing to pull back
    with torch.no_grad():
        w += torch.tensor([2.0, -4.0])
        other += 1
    w.grad = torch.tensor([3.0, 4.0])
    correction.apply(optimizer)
    assert w.grad.tolist() == [3.0 + 0.5 * 2.0, 4.0 + 0.5 * -4.0]
    assert other.grad.tolist() == [1.0]
    assert requested(Start({"w": w}, {}, ClientState(), {"proximal-mu": 0.0})) is None
    assert requested(Start({"w": w}, {}, ClientState(), {})) is None


def test_fedprox_of_flower_and_ours_are_one_and_a_single_step_is_fedavg(
    settings: Settings, samples: fedlab.Dataset
) -> None:
    def run(strategy: dict[str, object], **changes: object) -> Arrays:
        return weights(fedlab.run(settings(federation__strategy=strategy, **changes), data=samples))

    ours, flowers = run({"name": "fedprox", "mu": 1.0}), run({"name": "flower.FedProx", "proximal_mu": 1.0})
    assert_close(ours, flowers)
    plain = run({"name": "fedavg"})
    assert any(not np.allclose(ours[name], plain[name]) for name in plain)
    one = {"training__local_steps": 1, "federation__rounds": 1}
    stepped, unpulled = run({"name": "fedprox", "mu": 100.0}, **one), run({"name": "fedavg"}, **one)
    assert all(np.array_equal(stepped[name], unpulled[name]) for name in unpulled)


def test_fedprox_composes_with_fedlgd(settings: Settings, samples: fedlab.Dataset) -> None:
    small = {"name": "fedlgd", "ipc_local": 2, "ipc_global": 2, "warmup_steps": 1, "dm_steps": 1, "gm_steps": 1}
    method = {"method": {**small, "spacing": 1, "updates": 1}, "federation__rounds": 2, "training__local_epochs": 3}
    pulled = fedlab.run(settings(**method, federation__strategy={"name": "fedprox", "mu": 10.0}), data=samples)
    free = fedlab.run(settings(**method), data=samples)
    assert pulled.history.end["status"] == "completed"

    def traveled(run: fedlab.Run) -> float:
        return float(np.mean([event["metrics"]["ce"] for event in run.history.of("client")]))

    assert traveled(pulled) > traveled(free)  # what holds the weights back keeps the loss up
