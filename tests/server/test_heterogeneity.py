"""Clients that are only evaluated, clients without test samples and drifting data, in real runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import fedlab
from fedlab.config import Config
from fedlab.experiment.result import Run
from fedlab.method import FitContext, Method
from fedlab.server.strategies.average import FedAvg
from fedlab.server.strategies.rounds import TrainingRound

Settings = Callable[..., Config]
DRIFT = [
    {"name": "labels", "rounds": 2, "share": 0.5},
    {"name": "corruption", "corruptions": ["fog", "contrast"], "rounds": 2, "end": 4},
]


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("strategy", ["fedavg", "flower.FedAvg"])
@pytest.mark.usefixtures("reports")
def test_unseen_clients_never_train_and_are_always_evaluated_apart(
    strategy: str, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(data__unseen=["1"], federation__strategy=strategy)
    run = fedlab.run(config, method=plain, data=samples)
    assert [set(round["clients"]) for round in run.history.rounds] == [{0, 2, 3}] * 3
    assert len(run.history.evaluations) == 3
    for event in run.history.evaluations:
        clients = event["clients"]
        assert sorted(clients) == ["0", "1", "2", "3"]
        assert (event["unseen"], event["unseen_clients"]) == (clients["1"], ["1"])
        mean = sum(clients[name]["accuracy"] for name in ("0", "2", "3")) / 3
        assert event["mean"]["accuracy"] == pytest.approx(mean)
        assert event["pooled"]["accuracy"] == pytest.approx(mean)  # 12 test samples each
    assert run.history.series("accuracy", "unseen")[-1] == (3, event["unseen"]["accuracy"])
    assert ",unseen,accuracy," in run.folder.metrics.read_text()
    page = run.folder.report.read_text()
    assert "Mean of unseen" in page
    assert "1 (unseen)" in page


def test_an_unseen_clients_data_changes_nothing_in_the_model(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    train = samples.train
    spoilt = {**train.columns, "image": train["image"].copy()}
    spoilt["image"][train["domain"] == 1] = 1.0
    changed = fedlab.Dataset(
        "changed", fedlab.Samples(spoilt, train.class_names, train.domain_names), samples.test, samples.server
    )
    config = settings(data__unseen=["1"])
    runs = [fedlab.run(config, method=plain, data=data) for data in (samples, changed)]
    assert digest(runs[0]) == digest(runs[1])
    seen = [fedlab.run(settings(), method=plain, data=data) for data in (samples, changed)]
    assert digest(seen[0]) != digest(seen[1])


def test_unseen_clients_are_no_part_of_the_population(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    populations: list[int] = []

    class Counting(FedAvg):
        def begin(self, round: TrainingRound, current: Mapping[str, np.ndarray]) -> None:
            populations.append(round.population)

    config = settings(data__unseen=["0", "3"], federation__rounds=1)
    fedlab.run(config, method=plain, strategy=Counting, data=samples)
    assert populations == [2]


def test_unseen_clients_answer_no_query(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    asked: list[int] = []

    class Asking(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def prepare(self, ctx: FitContext) -> dict[str, Any]:
            if not ctx.preflight:
                asked.append(ctx.client)
            return {}

    fedlab.run(settings(data__unseen=["2"], federation__rounds=1), method=Asking, data=samples)
    assert asked == [0, 1, 3]


def test_clients_without_test_samples_count_in_no_mean(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    everyone = fedlab.run(settings(), method=plain, data=samples)
    run = fedlab.run(settings(data__test_clients=0.5), method=plain, data=samples)
    assert digest(run) == digest(everyone)  # who is tested makes no difference to training
    clients = run.metrics["clients"]
    assert len(clients) == 2
    assert {name: everyone.metrics["clients"][name] for name in clients} == clients
    assert run.metrics["mean"]["accuracy"] == pytest.approx(sum(v["accuracy"] for v in clients.values()) / 2)
    held = {c["name"]: sum(c["test"]) for c in json.loads(run.folder.partition.read_text())["clients"]}
    assert {name for name, count in held.items() if count} == set(clients)


def test_drifting_data_gives_the_same_bits_on_every_engine(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    changes: dict[str, Any] = {"data__drift": DRIFT, "federation__sampler": {"name": "uniform", "fraction": 0.5}}
    inline = fedlab.run(settings(**changes), method=plain, data=samples)
    workers = {"engine__name": "ray", "engine__workers": 2, "engine__chunk": 1}
    ray = fedlab.run(settings(**changes, **workers), method=plain, data=samples)
    assert digest(inline) == digest(ray)
    assert inline.metrics["clients"] == ray.metrics["clients"]


def test_training_and_evaluation_of_a_round_see_that_rounds_data(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    seen: list[tuple[str, int, float]] = []

    class Looking(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def note(self, what: str, ctx: Any) -> None:
            if not ctx.preflight:
                seen.append((what, ctx.round, float(ctx.data["image"].std())))

        def prepare(self, ctx: Any) -> dict[str, Any]:
            self.note("prepare", ctx)
            return {}

        def fit(self, ctx: Any) -> None:
            self.note("fit", ctx)
            super().fit(ctx)

        def evaluate(self, ctx: Any) -> Any:
            self.note("evaluate", ctx)
            return super().evaluate(ctx)

    fading = {"name": "corruption", "corruptions": ["contrast"], "rounds": 2, "end": 5}
    alone = {"data__partition": [{"name": "iid", "clients": 1}]}
    fedlab.run(settings(data__drift=[fading], **alone), method=Looking, data=samples)
    spread = {(what, round): value for what, round, value in seen}
    assert spread["prepare", 0] == spread["fit", 1] > spread["fit", 2] > spread["fit", 3]
    assert spread["evaluate", 1] > spread["evaluate", 2] > spread["evaluate", 3]
    seen.clear()
    fedlab.run(settings(data__drift=[{**fading, "test": "stay"}], **alone), method=Looking, data=samples)
    stayed = {(what, round): value for what, round, value in seen}
    assert stayed["evaluate", 3] == stayed["evaluate", 1] == spread["evaluate", 1]
    assert stayed["fit", 3] == spread["fit", 3]
