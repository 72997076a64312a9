"""Wall times that a method measures: told beside the metrics, never among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedlab
import fedlab.method.timing as timing
from fedlab.config import Config
from fedlab.method import EvaluationContext, FitContext, Method, ServerContext, Task
from fedlab.method.timing import Stopwatch, added

Settings = Callable[..., Config]


class Slow(Method):
    """Measures something in every phase."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": nn.Linear(1, 1)}

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        with ctx.timed("look"):
            return {"seen": torch.ones(1)}

    def server_prepare(self, ctx: ServerContext) -> None:
        with ctx.timed("start"):
            pass

    def fit(self, ctx: FitContext) -> None:
        for _ in range(2):
            with ctx.timed("step"):
                ctx.log("value", 1.0)

    def server_update(self, ctx: ServerContext) -> None:
        with ctx.timed("merge"):
            pass

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        with ctx.timed("search"):
            return {"n": np.ones(1)}

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return {"n": float(sums["n"][0])}

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        with ctx.timed("index"):
            return {"held": 1.0}


def test_times_are_added_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    for name in ("a", "a", "b"):
        with watch.measure(name):
            pass
    assert watch.timings == {"a": (5.0, 2), "b": (0.5, 1)}
    assert added([watch.timings, {"b": (1.0, 3)}]) == {"a": (5.0, 2), "b": (1.5, 4)}


def test_they_reach_the_events_and_what_shows_them_but_no_metric(
    settings: Settings, samples: fedlab.Dataset, reports: None
) -> None:
    config = settings(federation__rounds=2, evaluation__every=2)
    run = fedlab.run(config, method=Slow, data=samples)
    events = [
        (event["round"], event["phase"], event["where"], event["name"], event["count"], event["participants"])
        for event in run.history.of("timing")
    ]
    assert events == [
        (0, "prepare", "clients", "look", 4, 4),
        (0, "server", "server", "start", 1, 1),
        (1, "train", "clients", "step", 8, 4),
        (1, "server", "server", "merge", 1, 1),
        (2, "train", "clients", "step", 8, 4),
        (2, "server", "server", "merge", 1, 1),
        (2, "evaluate", "clients", "search", 4, 4),
        (2, "evaluate", "server", "index", 1, 1),
    ]
    assert all(event["seconds"] >= 0 for event in run.history.of("timing"))
    assert run.history.timings()["step", "clients"][1] == 16
    told = [run.metrics, *(event["train"] for event in run.history.rounds)]
    assert not {"look", "start", "step", "merge", "search", "index"} & {name for values in told for name in values}
    assert "seconds" not in run.metrics["mean"]
    page = run.folder.report.read_text(encoding="utf-8")
    assert "Times that the method measured" in page
    for name in ("look", "step", "search", "index"):
        assert f">{name}<" in page
