"""When an evaluation raises an alarm, by the thresholds that `fedlab.server.watch` states."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import fedlab
from fedlab.config import Config
from fedlab.method import Method, ServerContext
from fedlab.server.watch import Watch

LN4 = math.log(4)


def seen(*evaluations: tuple[float, float], watch: Watch | None = None) -> list[list[str]]:
    """Alarms of evaluations of (accuracy, loss) in four classes."""
    watch = watch or Watch(4)
    return [watch.see({"accuracy": accuracy, "loss": loss}) for accuracy, loss in evaluations]


def test_a_run_that_learns_raises_none() -> None:
    assert seen((0.25, LN4), (0.3, 1.3), (0.7, 0.8), (0.6, 1.1), (0.9, 1.3)) == [[]] * 5


def test_accuracy_that_falls_back_to_chance_is_divergence() -> None:
    *before, last = seen((0.38, 1.3), (0.26, 1.3), (0.25, 1.3))
    assert before == [[], []]
    assert last == ["divergence: accuracy has fallen back to chance (1/4); it was above before"]


def test_a_loss_that_rises_to_that_of_chance_is_divergence() -> None:
    *before, last = seen((0.5, 0.9), (0.5, LN4 - 1e-6), (0.5, LN4))
    assert before == [[], []]
    assert last == ["divergence: the loss has risen to that of chance (ln 4) or above; it was below before"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_without_a_value_is_divergence(loss: float) -> None:
    assert seen((0.5, loss)) == [["divergence: the loss on test samples is not finite"]]


def test_five_evaluations_at_chance_are_suspicious_and_four_are_not() -> None:
    found = seen(*[(0.25, 1.5)] * 5)
    assert found[:4] == [[]] * 4
    assert found[4] == ["nothing is learned: accuracy is at chance (1/4) or below in 5 evaluations"]
    assert seen(*[(0.25, 1.5)] * 4, (0.26, 1.5), (0.25, 1.5)) == [[]] * 6


def test_values_of_other_tasks_are_not_judged() -> None:
    assert Watch(4).see({"miou": 0.0}) == []
    assert Watch(0).see({"accuracy": 0.0, "loss": 9.0}) == []


def test_a_resumed_watch_knows_what_was_seen() -> None:
    first, second = Watch(4), Watch(4)
    seen((0.5, 0.8), watch=first)
    second.restore(first.book())
    assert len(seen((0.2, 2.0), watch=second)[0]) == 2
    third = Watch(4)
    third.restore({})  # a checkpoint of a version without
    assert seen((0.2, 2.0), watch=third) == [[]]


@pytest.mark.usefixtures("reports")
def test_a_run_that_diverges_says_so_in_its_report_and_in_the_terminal(
    settings: Callable[..., Config], samples: fedlab.Dataset, plain: type[Method], capsys: pytest.CaptureFixture[str]
) -> None:
    class Diverging(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        """Learns for three rounds; then the server breaks the model, and knows that it does."""

        def server_update(self, ctx: ServerContext) -> None:
            if ctx.round > 3:
                ctx.alarm("the server has broken the model")
                for p in ctx.networks.parameters():
                    p.data.mul_(0).add_(float(p.dim() == 1) * 50)

    config = settings(federation__rounds=5, tracking__console="plain", training__lr=0.2)
    run = fedlab.run(config, method=Diverging, data=samples)
    scores = [value for _, value in run.history.series("accuracy", "pooled")]
    assert scores[2] > 0.5
    assert np.isclose(scores[3], 1 / 3)
    assert run.history.alarms[0] == "the server has broken the model"
    assert any("accuracy has fallen back to chance (1/3)" in text for text in run.history.alarms)
    assert "Completed, with 2 alarms" in run.folder.report.read_text()
    errors = capsys.readouterr().err
    assert errors.count("alarm: the server has broken the model") == 1
    assert ", with 2 alarms" in errors.splitlines()[-1]


def test_an_earlier_checkpoint_takes_its_alarms_back(
    settings: Callable[..., Config], samples: fedlab.Dataset, plain: type[Method]
) -> None:
    class Alarming(plain):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def server_update(self, ctx: ServerContext) -> None:
            if ctx.round == 3:
                ctx.alarm("round three")

    config = settings(federation__rounds=4, tracking__checkpoint_every=2)
    run = fedlab.run(config, method=Alarming, data=samples, until=3)
    assert run.history.alarms == ["round three"]
    for late in run.folder.checkpoints.glob("round_000003"):
        late.rename(run.path / "taken-away")
    resumed = fedlab.resume(run.path, method=Alarming, data=samples)
    assert len(resumed.history.of("warning")) == 1
