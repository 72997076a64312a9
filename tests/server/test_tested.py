"""Who is tested in real runs: strangers, classes nobody trains, clients without tests, and what it all stands on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import fedlab
from fedlab.config import Config
from fedlab.data.partition.partition import PARTITIONERS
from fedlab.experiment.checks import check_data, left_out, resolve
from fedlab.experiment.result import Run
from fedlab.method import EvaluationContext, FitContext, Method, ServerContext, Task
from fedlab.server.evaluation import evaluated_clients

Settings = Callable[..., Config]


def weights(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def with_test(samples: fedlab.Dataset, **columns: np.ndarray) -> fedlab.Dataset:
    """The same training samples; the test samples take other values, by their position modulo the values given."""
    test = {**samples.test.columns}
    for name, values in columns.items():
        test[name] = np.resize(values, len(samples.test)).astype(np.int64)
    highest = max(int(test["domain"].max()), int(samples.train["domain"].max()))
    domains = tuple(f"d{number}" for number in range(highest + 1))
    classes = tuple(str(number) for number in range(max(samples.train.num_classes, int(test["label"].max()) + 1)))
    made = (fedlab.Samples(part, classes, domains) for part in (samples.train.columns, test))
    return fedlab.Dataset("made", *made, samples.server)


@pytest.fixture(scope="module")
def strangers() -> tuple[int, ...]:
    """Domains of the test samples; 0 to 3 train."""
    return (0, 1, 2, 3, 4, 4)


@pytest.mark.parametrize("strategy", ["fedavg", "flower.FedAvg", "flower.FedAdam"])
def test_a_domain_that_only_tests_is_unseen_and_changes_no_weight(
    strategy: str, settings: Settings, samples: fedlab.Dataset, plain: type[Method], strangers: tuple[int, ...]
) -> None:
    config = settings(data__partition=["domain"], federation__strategy=strategy, federation__rounds=2)
    run = fedlab.run(config, method=plain, data=with_test(samples, domain=np.array(strangers)))
    known = fedlab.run(config, method=plain, data=samples)
    assert weights(run) == weights(known)
    event = run.metrics
    assert event["unseen_clients"] == ["d4"]
    assert event["unseen"]["accuracy"] == event["clients"]["d4"]["accuracy"]
    assert sum(event["samples"].values()) == len(samples.test)
    assert event["samples"]["d4"] == sum(1 for i in range(len(samples.test)) if strangers[i % 6] == 4)
    assert any("'d4'" in warning for warning in run.history.warnings)


@pytest.mark.parametrize("strategy", ["fedavg", "flower.FedAvg"])
@pytest.mark.usefixtures("reports")
def test_all_tests_may_be_of_strangers(
    strategy: str, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(data__partition=["domain"], federation__strategy=strategy, federation__rounds=1)
    run = fedlab.run(config, method=plain, data=with_test(samples, domain=np.array([4, 5])))
    assert sorted(run.metrics["clients"]) == ["d4", "d5"]
    assert run.metrics["mean"] == run.metrics["pooled"] == {}
    assert 0 <= run.metrics["unseen"]["accuracy"] <= 1
    page = run.folder.report.read_text()
    assert "Unseen accuracy" in page
    assert "unseen clients only" in page


def test_strangers_survive_everything_that_walks_over_the_clients(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    asked: list[int] = []

    class Asking(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
            if not ctx.preflight:
                asked.append(ctx.client)
            return {}

        def examples(self, columns: Mapping[str, Tensor]) -> int:
            return 2 * super().examples(columns)

    data = with_test(samples, domain=np.array([0, 1, 2, 3, 4]))
    config = settings(
        data__partition=["domain"],
        data__drift=[{"name": "labels", "rounds": 2, "share": 0.5}],
        federation__rounds=3,
        federation__devices={},
        federation__sampler={"name": "power_of_choice", "fraction": 0.5, "metric": "ce"},
        evaluation__clients=0.5,
    )
    whole = fedlab.run(config, method=Asking, data=data)
    assert asked == [0, 1, 2, 3]
    assert all(set(round["clients"]) <= {0, 1, 2, 3} for round in whole.history.rounds)
    assert whole.metrics["unseen_clients"] == ["d4"]
    assert len(whole.metrics["clients"]) == 3
    begun = fedlab.run(config, method=Asking, data=data, until=1)
    assert weights(fedlab.resume(begun.path, method=Asking, data=data)) == weights(whole)
    table = json.loads(whole.folder.partition.read_text())
    assert (table["skew"]["clients"], table["registered"]) == (4, 5)
    assert [client["unseen"] for client in table["clients"]] == [False] * 4 + [True]


@pytest.mark.usefixtures("ray_workers")
def test_strangers_are_evaluated_alike_on_every_engine(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    data = with_test(samples, domain=np.array([0, 1, 2, 3, 4]))
    found = [
        fedlab.run(
            settings(data__partition=["domain"], federation__rounds=1, engine__name=name), method=plain, data=data
        )
        for name in ("inline", "ray")
    ]
    assert found[0].metrics["clients"] == found[1].metrics["clients"]
    assert weights(found[0]) == weights(found[1])


@pytest.mark.parametrize(
    "name", [name for name in PARTITIONERS.names() if name not in ("natural", "corruption", "site")]
)
def test_a_class_nobody_trains_counts_under_every_partition(
    name: str, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    """Accuracy over all test samples can be no higher than the share of those whose class is trained."""
    foreign = samples.train.num_classes
    data = with_test(samples, label=np.array([0, 1, foreign, foreign]), domain=np.array([0, 1, 2, 3]))
    step: dict[str, Any] = {"name": name, **({} if name == "domain" else {"clients": 4})}
    run = fedlab.run(settings(data__partition=[step], federation__rounds=1), method=plain, data=data)
    assert sum(run.metrics["samples"].values()) == len(samples.test)
    assert run.metrics["pooled"]["accuracy"] <= 0.5


class TestWhatIsLeftOut:
    @pytest.mark.usefixtures("reports")
    def test_clients_that_are_never_evaluated_are_counted(
        self, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
    ) -> None:
        config = settings(evaluation__clients=1, federation__rounds=1)
        run = fedlab.run(config, method=plain, data=samples)
        (left,) = run.history.left_out
        tested = sum(run.metrics["samples"].values())
        assert (left.what, left.count, left.total) == ("test samples", len(samples.test) - tested, len(samples.test))
        assert left.wanted
        assert "evaluation.clients = 1 evaluates 1 of 4 clients" in str(left)
        assert "evaluation.clients = 1" in run.folder.report.read_text()
        assert left_out(config, check_data(resolve(config), samples)) == (left,)

    def test_evaluating_all_leaves_nothing_out(self, settings: Settings, samples: fedlab.Dataset) -> None:
        for clients in (None, 4, 1.0):
            assert left_out(settings(evaluation__clients=clients), check_data(resolve(settings()), samples)) == ()

    def test_a_run_without_any_test_sample_is_warned_of_before_and_after(
        self, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
    ) -> None:
        nothing = samples.test.select(np.arange(0))
        data = fedlab.Dataset("untested", samples.train, nothing, samples.server)
        run = fedlab.run(settings(federation__rounds=2), method=plain, data=data)
        before, after = run.history.warnings
        assert "no client has test samples" in before
        assert "the evaluation of round 1 measured nothing" in after

    def test_an_evaluation_without_a_value_is_warned_of_once(
        self, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
    ) -> None:
        class Speechless(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
            title = "Speechless"

            def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
                return {}

        run = fedlab.run(settings(federation__rounds=2), method=Speechless, data=samples)
        (warning,) = run.history.warnings
        assert f"Speechless found no value on {len(samples.test)} test samples of 4 clients" in warning


class TestWhatItStandsOn:
    def test_a_method_says_what_it_counts(
        self, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
    ) -> None:
        class Pairs(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
            evaluation_unit = "pairs"

            def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
                count = len(ctx.data["label"])
                return {**super().evaluate(ctx), "pairs": np.asarray(count * (count - 1))}

            def evaluation_count(self, sums: Mapping[str, np.ndarray], samples: int) -> int:
                return int(sums["pairs"])

            def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
                return {"half": 0.5}

        run = fedlab.run(settings(federation__rounds=1), method=Pairs, data=samples)
        assert run.metrics["unit"] == "pairs"
        assert run.metrics["samples"] == {str(client): 12 * 11 for client in range(4)}
        sizes = {name: len(held) for name, held in samples.server.items()}
        assert run.metrics["server_samples"] == sizes

    def test_unevaluated_clients_are_those_the_loop_leaves_out(
        self, settings: Settings, samples: fedlab.Dataset
    ) -> None:
        config = settings(evaluation__clients=0.5, data__unseen=["3"])
        data = check_data(resolve(config), samples)
        chosen = evaluated_clients(0.5, range(4), [0, 1, 2], lambda client: data.num_test(client) > 0, config.seed)
        (left,) = [left for left in left_out(config, data) if left.what == "test samples"]
        assert left.count == len(samples.test) - sum(data.num_test(client) for client in chosen)
