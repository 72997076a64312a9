"""Callbacks in real runs: when they are called, what they may ask for, and that nothing is forgotten."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer.testing

import fedlab
from fedlab.callbacks import Callback, CallbackContext
from fedlab.cli.main import app
from fedlab.config import Config, Section
from fedlab.errors import CallbackError, CheckpointError, ConfigErrors
from fedlab.experiment.result import Run
from fedlab.method import FigureContext, Method, Picture
from fedlab.method.pictures import ImageGrid
from fedlab.storage.checkpoint import load_checkpoint
from fedlab.studies.plan import _complete
from tests.server.nodes import Deployment

Settings = Callable[..., Config]
STOP = {"metric": "loss", "patience": 2}
STILL = {"training__lr": 1e-30, "federation__rounds": 9, "data__validation": 0.25, "federation__stop": STOP}
"""No round after the first is an improvement."""


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def evaluations(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in event.items() if name != "time"} for event in run.history.evaluations]


class Noting(Callback):
    """Notes every call; draws and changes what it is given, which must not matter."""

    def __init__(self, notes: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.notes = notes

    def _note(self, hook: str, ctx: CallbackContext) -> None:
        drawn = float(torch.rand(()))
        self.notes.append((hook, ctx.round, "train" in ctx.record, sorted(ctx.evaluation.get("mean", ())), drawn))
        for value in ctx.weights().values():
            value.zero_()

    def on_run_start(self, ctx: CallbackContext) -> None:
        self._note("run start", ctx)

    def on_round_start(self, ctx: CallbackContext) -> None:
        self._note("round start", ctx)

    def on_evaluation(self, ctx: CallbackContext) -> None:
        self._note("evaluation", ctx)
        assert ctx.evaluation["round"] == ctx.record["round"] == ctx.round

    def on_round_end(self, ctx: CallbackContext) -> None:
        self._note("round end", ctx)
        assert (ctx.record["bytes_up"], ctx.rounds, (ctx.folder / "config.yaml").is_file()) == (
            ctx.record["bytes_down"],
            3,
            True,
        )

    def on_run_end(self, ctx: CallbackContext) -> None:
        self._note("run end", ctx)


class Ending(Callback):
    """Asks to stop in some hook of some round, and counts the rounds that it has seen."""

    class Settings(Section):
        hook: str = "on_round_end"
        round: int = 2

    count = 0

    def on_round_start(self, ctx: CallbackContext) -> None:
        self.count += 1
        self._ask("on_round_start", ctx)

    def on_evaluation(self, ctx: CallbackContext) -> None:
        self._ask("on_evaluation", ctx)

    def on_round_end(self, ctx: CallbackContext) -> None:
        self._ask("on_round_end", ctx)

    def _ask(self, hook: str, ctx: CallbackContext) -> None:
        if (hook, self.count) == (self.settings.hook, self.settings.round):
            ctx.stop(f"{hook} has seen enough")

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": torch.tensor([self.count / 2])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        assert state["mean"].tolist() == [self.count / 2]


class Failing(Callback):
    def on_evaluation(self, ctx: CallbackContext) -> None:
        if ctx.round == 2:
            raise ValueError("nobody listens")


class Killing(Ending):
    """Its process is killed in a round, once."""

    killed = False

    def on_round_end(self, ctx: CallbackContext) -> None:
        super().on_round_end(ctx)
        if ctx.round == 3 and not Killing.killed:
            Killing.killed = True
            raise KeyboardInterrupt


def test_hooks_are_called_in_order_and_change_nothing(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(evaluation__every=2)
    alone = fedlab.run(config, method=plain, data=samples)
    every: list[list[tuple[Any, ...]]] = []
    for _ in range(2):
        notes: list[tuple[Any, ...]] = []
        noted = config.with_overrides({"tracking.name": "noted"})
        if every:
            noted = noted.with_overrides({"tracking.folder": f"{config.tracking.folder}/again"})
        run = fedlab.run(noted, method=plain, data=samples, callbacks=[Noting(notes)])
        every.append(notes)
    metrics = ["accuracy", "accuracy_balanced", "loss"]
    metrics = sorted(run.metrics["mean"])
    assert [note[:4] for note in every[0]] == [
        ("run start", 0, False, []),
        ("round start", 1, False, []),
        ("round end", 1, True, []),
        ("round start", 2, False, []),
        ("evaluation", 2, True, metrics),
        ("round end", 2, True, metrics),
        ("round start", 3, False, []),
        ("evaluation", 3, True, metrics),
        ("round end", 3, True, metrics),
        ("run end", 3, False, []),
    ]
    assert every[0] == every[1]
    assert len({note[4] for note in every[0]}) == len(every[0])
    ours, theirs = (load_checkpoint(one.checkpoint)[0] for one in (run, alone))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert evaluations(run) == evaluations(alone)


@pytest.mark.parametrize("hook", ["on_round_start", "on_evaluation", "on_round_end"])
def test_a_callback_ends_the_run_and_its_last_round_is_finished(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], hook: str
) -> None:
    class Drawing(plain):  # type: ignore[misc, valid-type]  # a class that a fixture holds
        def figures(self, ctx: FigureContext) -> dict[str, Picture]:
            return {"x": ImageGrid(torch.zeros(1, 1, 2, 2), 1, title="x", caption="x")}

        def artifacts(self, ctx: FigureContext) -> dict[str, dict[str, torch.Tensor]]:
            return {"kept": {"round": torch.tensor(ctx.round)}}

    every = 2 if hook == "on_evaluation" else 5
    config = settings(federation__rounds=5, evaluation__every=every)
    ending = Ending(Ending.Settings(hook=hook))
    run = fedlab.run(config, method=Drawing, data=samples, callbacks=[ending])
    whole = fedlab.run(config.with_overrides({"federation.rounds": 5}), method=Drawing, data=samples, until=2)
    end = run.history.end
    assert end["status"] == "completed"
    assert end["stopped"] == run.history.stopped == {
        "round": 2, "by": "Ending (callbacks.0)", "reason": f"{hook} has seen enough"
    }  # fmt: skip
    assert [event["round"] for event in run.history.evaluations] == [2]
    assert [event["round"] for event in run.history.of("figure")] == [0, 1, 2]
    assert [event["name"] for event in run.history.of("artifact")] == ["kept"]
    assert run.checkpoint.name == "round_000002"
    ours, theirs = (load_checkpoint(one.checkpoint)[0] for one in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert _complete(run)
    assert not _complete(whole)
    with pytest.raises(CheckpointError, match=r"a callback has ended this one after round 2(.|\n)*as init"):
        fedlab.resume(run.path, method=Drawing, data=samples, callbacks=[Ending(ending.settings)])
    shown = typer.testing.CliRunner().invoke(app, ["show", str(run.path)]).output
    assert f"2 of 5 rounds, stopped early: {hook} has seen enough (Ending (callbacks.0))" in " ".join(shown.split())


def test_the_last_round_is_no_early_end(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    ending = Ending(Ending.Settings(round=3))
    run = fedlab.run(settings(), method=plain, data=samples, callbacks=[ending])
    assert (run.history.last_round, run.history.stopped) == (3, {})


def test_no_improvement_on_validation_samples_ends_the_run(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(**STILL), method=plain, data=samples)
    assert run.history.last_round == 3
    assert run.history.stopped["by"] == "EarlyStopping (federation.stop)"
    assert "validation loss did not improve in 2 evaluations, best" in run.history.stopped["reason"]
    named = {**STILL, "federation__stop": None, "callbacks": [{"name": "early_stopping", **STOP}]}
    other = fedlab.run(settings(**named), method=plain, data=samples)
    assert other.history.stopped == {**run.history.stopped, "by": "EarlyStopping (callbacks.0)"}


def test_the_best_weights_are_those_of_the_best_evaluation_and_a_run_starts_from_them(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    keep = {"tracking__checkpoint_every": 1, "federation__rounds": 4, "data__validation": 0.25}
    config = settings(**keep, federation__stop={"metric": "loss", "patience": 6, "better": "higher"})
    run = fedlab.run(config, method=plain, data=samples)
    values = dict(run.history.series("loss", "validation"))
    best = max(values, key=lambda round: (values[round], -round))
    assert best != 4, "the last round must not be the best one, or this test shows nothing"
    file = run.folder.artifacts / "best_loss_model.safetensors"
    kept = safetensors.torch.load_file(file)
    then, _ = load_checkpoint(run.folder.checkpoints / f"round_{best:06d}")
    assert kept.keys() == {name.removeprefix("network/model.") for name in then if name.startswith("network/model.")}
    assert all(torch.equal(value, then[f"network/model.{name}"]) for name, value in kept.items())
    start = fedlab.run(
        settings(init={"model": str(file)}, training__lr=1e-30, federation__rounds=1), method=plain, data=samples
    )
    for name, value in start.model["model"].state_dict().items():
        torch.testing.assert_close(value, kept[name])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "federation__mode": "asynchronous",
            "federation__asynchronous": {"concurrency": 3, "buffer": 2},
            "federation__devices": {},
        },
    ],
    ids=["synchronous", "asynchronous"],
)
def test_a_run_that_is_killed_stops_in_the_same_round_with_the_same_bits(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], changes: dict[str, Any]
) -> None:
    stop = {"federation__stop": {"metric": "loss", "patience": 3}, "tracking__checkpoint_every": 2}
    config = settings(**{**STILL, **stop, **changes})

    def killing() -> list[Callback]:
        return [Killing(Killing.Settings(round=99))]

    Killing.killed = True
    whole = fedlab.run(config, method=plain, data=samples, callbacks=killing())
    assert whole.history.last_round == 4
    Killing.killed = False
    elsewhere = config.with_overrides({"tracking.folder": f"{config.tracking.folder}/killed"})
    with pytest.raises(KeyboardInterrupt):
        fedlab.run(elsewhere, method=plain, data=samples, callbacks=killing())
    (path,) = Path(elsewhere.tracking.folder).iterdir()
    assert fedlab.load(path).checkpoint.name == "round_000002"
    again = fedlab.resume(path, method=plain, data=samples, callbacks=killing())
    assert again.history.start["resumed"] == 2
    assert again.history.stopped == whole.history.stopped
    assert digest(again) == digest(whole)
    assert evaluations(again) == evaluations(whole)
    assert [load_checkpoint(run.checkpoint)[1]["callbacks"]["states"]["callbacks.0"] for run in (again, whole)] == [
        {"count": 4}, {"count": 4}
    ]  # fmt: skip


def test_a_run_that_is_killed_after_it_was_stopped_is_finished(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Callback) -> dict[str, Any]:
        raise KeyboardInterrupt

    config = settings(**STILL)
    with monkeypatch.context() as patch:
        patch.setattr("fedlab.callbacks.early_stopping.EarlyStopping.artifacts", die)
        with pytest.raises(KeyboardInterrupt):
            fedlab.run(config, method=plain, data=samples)
    (path,) = Path(config.tracking.folder).iterdir()
    run = fedlab.resume(path, method=plain, data=samples)
    assert (run.history.last_round, run.history.end["status"]) == (3, "completed")
    assert run.history.stopped["round"] == 3
    assert [event["name"] for event in run.history.of("artifact")] == ["best_loss_model"]


def test_a_callback_that_fails_is_named_with_its_traceback(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings()
    with pytest.raises(CallbackError) as caught:
        fedlab.run(config, method=plain, data=samples, callbacks=[Failing])
    text = str(caught.value)
    assert text.startswith("the callback Failing (callbacks.0) failed in on_evaluation() in round 2:\nTraceback")
    assert 'raise ValueError("nobody listens")' in text
    assert "server/callbacks.py" not in text
    (path,) = Path(config.tracking.folder).iterdir()
    end = fedlab.load(path).history.end
    assert end["status"] == "failed"
    assert "the callback Failing (callbacks.0) failed in on_evaluation()" in end["error"]


def test_a_run_that_is_resumed_makes_its_callbacks_again_or_asks_for_them(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(), method=plain, data=samples, until=1, callbacks=[Noting([])])
    with pytest.raises(ConfigErrors, match=r"callbacks.0 = .*Noting'\n.*constructor takes more than settings"):
        fedlab.resume(run.path, method=plain, data=samples)
    ended = fedlab.run(settings(federation__rounds=5), method=plain, data=samples, until=1, callbacks=[Ending])
    done = fedlab.resume(ended.path, method=plain, data=samples)
    assert done.history.stopped["round"] == 2, "it remembers the round before"


def test_in_a_deployment_callbacks_run_on_the_server(small: Settings, deployment: Deployment) -> None:
    config = small(
        callbacks=[{"name": f"{__name__}:Ending", "round": 2}], data__validation=0.3, federation__rounds=4
    )  # fmt: skip
    deployed = deployment.serve(deployment.submitted(config, 3))
    simulated = fedlab.run(config)
    assert deployed.history.stopped == simulated.history.stopped
    assert deployed.history.stopped["round"] == 2
    ours, theirs = (load_checkpoint(run.checkpoint)[0] for run in (deployed, simulated))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert deployed.metrics["validation"] == simulated.metrics["validation"]
