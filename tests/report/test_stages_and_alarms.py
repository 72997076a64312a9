"""Metrics of a stage that has ended stay on the page, and a result in doubt is not shown as a plain success."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlab.report import write_report
from fedlab.report.earlier import Earlier, earlier_values
from fedlab.report.tables import result_table
from fedlab.tracking import History
from fedlab.tracking.left_out import LeftOut
from tests.report.pages import Page

QUICK = {"logs": False, "pictures": False, "metrics": ("accuracy",)}


def evaluation(round: int, mean: dict[str, float | None], server: dict[str, float] | None = None) -> dict[str, Any]:
    return {"event": "evaluation", "round": round, "mean": mean, "pooled": {}, "server": server or {}}


def test_the_last_value_of_every_metric_that_went_out_of_use_is_kept() -> None:
    events = [
        evaluation(1, {"masked_l1": 0.9, "mean_abs": 1.0}, {"probe_accuracy": 0.2}),
        evaluation(2, {"masked_l1": 0.5, "mean_abs": None}, {"probe_accuracy": 0.4}),
        evaluation(3, {"accuracy": 0.7}, {"probe_accuracy": 0.5}),
    ]
    assert earlier_values(events) == [
        Earlier("masked_l1", "unweighted mean", 0.5, 2),
        Earlier("mean_abs", "unweighted mean", 1.0, 1),
    ]
    assert earlier_values(events[:1]) == []
    assert earlier_values([]) == []


@pytest.fixture
def staged(make_run: Callable[..., Path]) -> Path:
    """Four rounds; in the first two the clients measured ``masked_l1`` and not ``accuracy``."""
    path = make_run(**QUICK)
    lines = (path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for event in events:
        if event["event"] == "evaluation" and event["round"] <= 2:
            for values in (event["mean"], event["pooled"], *event["clients"].values()):
                values["masked_l1"] = values.pop("accuracy")
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_a_page_shows_what_an_earlier_stage_measured(staged: Path) -> None:
    page = Page(write_report(staged))
    results = page.text("results")
    assert "Earlier metric | Of | Value | After round" in results
    assert "Masked l1 | unweighted mean |" in results
    assert "Test masked l1" in page.text("curves")
    shown = io.StringIO()
    Console(file=shown, width=200).print(result_table(History.from_jsonl(staged / "events.jsonl")))
    assert "earlier  masked l1" in shown.getvalue()
    assert "(unweighted mean, after round 2)" in shown.getvalue()


def add(path: Path, *events: dict[str, Any]) -> Path:
    with (path / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return path


def alarm(round: int, message: str) -> dict[str, Any]:
    return {"event": "warning", "time": 0.0, "level": "alarm", "round": round, "message": message}


def test_alarms_reach_the_badge_and_the_status_line(make_run: Callable[..., Path]) -> None:
    path = add(make_run(**QUICK), alarm(2, "collapse: all alike"), alarm(3, "collapse: all alike"), alarm(3, "worse"))
    page = Page(write_report(path))
    assert "Completed, with 2 alarms" in page.text("")
    assert "The result is in doubt | collapse: all alike | worse" in page.text("Alarms")
    shown = io.StringIO()
    Console(file=shown, width=200).print(result_table(History.from_jsonl(path / "events.jsonl")))
    assert "status   completed, with 2 alarms after" in shown.getvalue()


def test_a_run_without_alarms_is_plainly_completed(make_run: Callable[..., Path]) -> None:
    page = Page(write_report(make_run(**QUICK, warnings=("only a warning",))))
    assert "Completed |" in page.text("")
    assert "with" not in page.text("").split("Completed")[1].split("|")[0]


def test_what_was_left_out_in_many_rounds_is_one_row_with_its_sum(make_run: Callable[..., Path]) -> None:
    left = LeftOut("local trainings", 2, "the client failed", 4, examples=("a",))
    told = [{"event": "left_out", "time": 0.0, "round": round, **left.fields()} for round in (1, 2, 4)]
    page = Page(write_report(add(make_run(**QUICK), *told)))
    assert "local trainings | the client failed | " in page.text("left-out")
    assert "| 6 | 12" in page.text("left-out")
