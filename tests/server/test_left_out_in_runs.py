"""What a run leaves out while it runs is counted; nothing that nobody trained or returned is passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

import fedlab
from fedlab.config import Config
from fedlab.errors import ClientError, ConfigError, FedLabError
from fedlab.method import Batch, BatchSpec, FitContext, Method, ServerContext, Step, Task
from fedlab.report import write_report

Settings = Callable[..., Config]
Counted = dict[str, tuple[float, float | None]]


def counted(run: fedlab.Run) -> Counted:
    """Count and total by the first words of what and why."""
    return {f"{left.what}: {left.why}": (left.count, left.total) for left in run.history.left_out}


def of(found: Counted, words: str) -> tuple[float, float | None]:
    (value,) = [value for text, value in found.items() if words in text]
    return value


# steps


def test_a_client_that_fills_no_batch_is_counted_in_every_round_and_told_once(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [{"name": "size", "clients": 4, "rule": "square"}]
    config = settings(
        data__partition=sizes, training__batch_size=8, training__drop_last=True, tracking__console="plain"
    )
    run = fedlab.run(config, method=plain, data=samples)
    small = [c for c, event in enumerate(clients_of(run)) if event < 8]
    assert len(small) == 1
    found = counted(run)
    assert of(found, "local trainings: no batch could be drawn") == (3 * len(small), 3 * 4)
    assert of(found, "training samples of each epoch")[0] == sum(size % 8 for size in clients_of(run))
    assert run.history.alarms == []
    told = [line for line in capsys.readouterr().err.splitlines() if "no batch could be drawn" in line]
    assert len(told) == 2
    assert told[0].startswith("warning: 1 of 4 local trainings left out")
    assert told[1].startswith("warning: in all rounds, 3 of 12 local trainings left out")
    assert "no batch could be drawn" in write_report(run.path).read_text()


def test_clients_trained_as_one_batch_are_counted_alike(settings: Settings, samples: fedlab.Dataset) -> None:
    sizes = [{"name": "size", "clients": 4, "rule": "square"}]
    dropping = {"data__partition": sizes, "training__batch_size": 8, "training__drop_last": True}
    alone, together = (
        fedlab.run(settings(engine__vectorize=how, **dropping), data=samples).history.left_out for how in ("off", 4)
    )
    assert alone == together
    assert any("no batch could be drawn" in left.why for left in together)


def clients_of(run: fedlab.Run) -> list[int]:
    import json

    return [sum(client["train"]) for client in json.loads(run.folder.partition.read_text())["clients"]]


def test_batches_that_no_client_can_fill_are_refused_before_the_run(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(training__batch_size=512, training__drop_last=True)
    with pytest.raises(ConfigError, match=r"training\.batch_size = 512\n.*at most \d+, the training samples of the la"):
        fedlab.run(config, method=plain, data=samples)
    assert not list(_folder(config).iterdir()) if _folder(config).exists() else True


def _folder(config: Config) -> Any:
    from pathlib import Path

    return Path(config.tracking.folder)


def test_without_drop_last_nothing_is_left_out(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(), method=plain, data=samples)
    assert counted(run) == {}
    assert run.history.alarms == []


class Skipping(Method):
    """Skips batches, returns nothing, or draws nothing."""

    skips = "some"

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": task.model()}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        if self.skips == "none":
            return None  # type: ignore[return-value]  # what a forgotten return gives
        if self.skips == "all" or (self.skips == "some" and step.index == 0):
            return {}
        return {"ce": nn.functional.cross_entropy(networks["model"](batch["image"]), batch["label"])}


class NoneReturned(Skipping):
    skips = "none"


class AllSkipped(Skipping):
    skips = "all"


class Barren(Skipping):
    """A sampler that finds no batch in a client's second epoch."""

    skips = ""

    def batch_spec(self, plan: Any) -> BatchSpec:
        calls = iter(range(10**6))

        def sampler(columns: Mapping[str, Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
            if next(calls) == 0:
                yield torch.arange(min(size, len(columns["label"])))

        return BatchSpec(sampler)


def test_skipped_batches_are_counted_by_the_loss_that_skipped_them(settings: Settings, samples: fedlab.Dataset) -> None:
    run = fedlab.run(settings(), method=Skipping, data=samples)
    batches = sum(-(-size // 16) for size in clients_of(run))
    assert of(counted(run), "training steps: Skipping.loss() returned no term") == (3 * 4, 3 * batches)
    assert run.history.alarms == []


def test_a_round_without_a_step_raises_one_alarm_that_names_the_loss(
    settings: Settings, samples: fedlab.Dataset
) -> None:
    run = fedlab.run(settings(), method=AllSkipped, data=samples)
    (alarm,) = run.history.alarms
    assert "no client took a training step in a whole round: AllSkipped.loss()" in alarm
    assert "Completed, with 1 alarm" in write_report(run.path).read_text()


def test_a_loss_that_returns_none_is_named_before_the_run(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings()
    with pytest.raises(FedLabError, match=r"NoneReturned\.loss\(\) returned None in round 1"):
        fedlab.run(config, method=NoneReturned, data=samples)
    assert not _folder(config).exists()


def test_steps_for_which_a_sampler_finds_no_batch_are_counted(settings: Settings, samples: fedlab.Dataset) -> None:
    run = fedlab.run(settings(training__local_steps=5), method=Barren, data=samples)
    assert of(counted(run), "no further batch could be drawn, as the method's own sampler")[0] == 3 * 4 * (5 - 1)


# who takes part


def test_drop_outs_late_clients_and_steps_after_the_deadline_are_counted(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(federation__dropout=0.5, federation__rounds=6), method=plain, data=samples)
    took_part = sum(len(event["clients"]) for event in run.history.rounds)
    assert of(counted(run), "dropped out")[0] == 6 * 4 - took_part > 0
    # a step of four samples takes four virtual seconds, so the deadline leaves room for five
    devices = {"speed": 1.0, "speed_spread": 0.0, "down": 1e12, "up": 1e12, "link_spread": 0.0}
    slow = {"federation__devices": devices, "federation__rounds": 1, "training__batch_size": 4}
    sizes = clients_of(run)
    planned = sum(-(-size // 4) for size in sizes)
    late = fedlab.run(settings(federation__deadline=22, federation__late="drop", **slow), method=plain, data=samples)
    assert of(counted(late), "local trainings: federation.deadline") == (4, 4)
    partial = fedlab.run(
        settings(federation__deadline=22, federation__late="partial", **slow), method=plain, data=samples
    )
    assert of(counted(partial), "training steps: federation.deadline") == (planned - 4 * 5, planned)


def test_a_client_that_is_skipped_is_shown_once_and_counted(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Broken(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def fit(self, ctx: FitContext) -> None:
            if ctx.client == 2 and not ctx.preflight:
                raise RuntimeError("no such luck")

    run = fedlab.run(settings(federation__on_client_error="skip"), method=Broken, data=samples)
    assert of(counted(run), "local trainings: the client failed") == (3, 12)
    assert len([text for text in run.history.warnings if "no such luck" in text]) == 1


# strategies


class Part(FedAvg):
    """Returns something else than it was given."""

    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        changed = type(self).change({name: array.numpy() for name, array in arrays.items()})
        return ArrayRecord({name: torch.from_numpy(np.array(value)) for name, value in changed.items()}), metrics


CHANGES: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = {
    "a part": (lambda a: dict(list(a.items())[:1]), r"returned 1 of \d+ arrays in round 1; missing: 'model\."),
    "another shape": (lambda a: {n: v.reshape(-1)[:1] for n, v in a.items()}, r"of shape \(1,\) in round 1"),
    "another kind": (lambda a: {n: v.astype(np.int64) for n, v in a.items()}, r"as int64 in round 1"),
    "another name": (lambda a: {**a, "stranger": np.zeros(1)}, r"'stranger' in round 1 that the model does not have"),
    "infinity": (lambda a: {n: v * np.inf for n, v in a.items()}, r"NaN or infinite values in"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_a_strategy_returns_must_be_the_model(
    case: str, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Changed(Part):
        change = staticmethod(CHANGES[case][0])  # type: ignore[assignment]  # called through the class

    with pytest.raises(FedLabError, match=r"the strategy Changed (?=returned)[\s\S]*" + CHANGES[case][1]):
        fedlab.run(settings(), method=plain, data=samples, strategy=Changed)


def test_a_strategy_may_return_more_digits(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    class Wide(Part):
        change = staticmethod(lambda a: {n: v.astype(np.float64) for n, v in a.items()})  # type: ignore[assignment]

    wide = fedlab.run(settings(), method=plain, data=samples, strategy=Wide)
    usual = fedlab.run(settings(), method=plain, data=samples, strategy=FedAvg)
    assert wide.metrics["mean"] == usual.metrics["mean"]


def test_a_strategy_that_asks_nobody_raises_an_alarm(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Silent(FedAvg):
        def configure_train(self, *arguments: Any) -> list[Message]:
            return []

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            raise AssertionError("nobody was asked")

    run = fedlab.run(settings(), method=plain, data=samples, strategy=Silent)
    (alarm,) = run.history.alarms
    assert "configure_train of the strategy Silent gave no messages" in alarm
    assert of(counted(run), "rounds of training") == (3, 3)


def test_a_strategy_that_forms_no_model_is_named(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Undecided(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            return None, None

    with pytest.raises(FedLabError, match="the strategy Undecided returned no model in round 1 from 4 replies"):
        fedlab.run(settings(), method=plain, data=samples, strategy=Undecided)


# values


def test_values_that_cannot_be_computed_are_counted(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Picky(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
            values = dict(super().evaluation_values(sums, task))
            few = int(sums["confusion"].sum()) < 30  # a client's, not all clients' together
            return {**values, "doubtful": float("nan")} if few else {**values, "auroc": 0.5}

        def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
            return {"broken": float("inf")}

    run = fedlab.run(settings(federation__rounds=1), method=Picky, data=samples)
    (left,) = [left for left in run.history.left_out if "NaN" in left.why]
    assert left.count == 4 + 1 + 1  # every client's, their mean, the server's
    assert "broken of server" in left.examples
    only_some = fedlab.run(settings(federation__rounds=1), method=_Some, data=samples)
    (left,) = [left for left in only_some.history.left_out if "do not allow" in left.why]
    assert (left.count, left.total) == (4 - only_some_have(only_some), 5 * 4)


class _Some(Skipping):
    """A value for clients whose test samples are of all three classes."""

    skips = ""

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        values = super().evaluation_values(sums, task)
        return {**values, "odd": 1.0} if sums["confusion"].trace() % 2 else values


def only_some_have(run: fedlab.Run) -> int:
    return sum("odd" in values for values in run.metrics["clients"].values())


def test_clients_failures_in_evaluation_are_counted(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Blind(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def evaluate(self, ctx: Any) -> Mapping[str, np.ndarray]:
            if ctx.generator("x").initial_seed() and ctx._scope == ("client", 1) and not ctx.preflight:
                raise RuntimeError("cannot see")
            found: Mapping[str, np.ndarray] = super().evaluate(ctx)
            return found

    with pytest.raises(ClientError, match="cannot see"):
        fedlab.run(settings(), method=Blind, data=samples)
    run = fedlab.run(settings(federation__on_client_error="skip"), method=Blind, data=samples)
    assert of(counted(run), "evaluations of clients: the client failed")[0] == len(run.history.evaluations)


# pictures


def test_pictures_that_fail_cost_a_warning_and_no_result(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Drawing(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def figures(self, ctx: Any) -> Any:
            if ctx.round:
                raise ZeroDivisionError("nothing to scale")
            return {}

    run = fedlab.run(settings(federation__rounds=1), method=Drawing, data=samples)
    assert run.history.end["status"] == "completed"
    assert run.history.warnings == [
        "no pictures after round 1: Drawing.figures() failed: ZeroDivisionError: nothing to scale"
    ]


def test_a_method_that_never_draws_what_it_can_draw_says_so(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Blank(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def figures(self, ctx: Any) -> Any:
            return {}

    (warning,) = fedlab.run(settings(), method=Blank, data=samples).history.warnings
    assert "Blank.figures() gave none after round 3" in warning
