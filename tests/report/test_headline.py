"""What a method's claim is about stands first, also where the server measures it, and is not lost with a stage."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlab.report import write_report
from fedlab.report.headline import headline
from fedlab.report.record import RunRecord, claims, main_metric, main_metrics
from fedlab.report.tables import result_table
from fedlab.tracking import History
from tests.report.pages import Page

QUICK = {"logs": False, "pictures": False}


def claiming(path: Path, *named: Any, drop: Callable[[dict[str, Any]], bool] = lambda event: False) -> Path:
    """The run as one of a method that names these metrics; server values that `drop` holds for are gone."""
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "federation":
            event["headline"] = named
        if event["event"] == "evaluation" and drop(event):
            event["server"] = {}
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def figures(path: Path) -> dict[str, tuple[str, str]]:
    return {name: (value, remark) for name, value, remark in headline(RunRecord.open(path))}


def test_the_servers_metrics_of_the_claim_come_before_those_of_the_clients(make_run: Callable[..., Path]) -> None:
    path = claiming(make_run(metrics=("mAP",), held={"mAP": 0.25, "rank1": 0.5, "purity": 0.75}, **QUICK),
                    ["mAP", "server"], ["rank1", "server"])  # fmt: skip
    found = figures(path)
    assert [*found][:3] == ["mAP", "Rank1", "Mean mAP"]
    assert found["mAP"] == ("0.250", "on the server’s data, after round 4")
    assert found["Mean mAP"][0] == "0.220"
    page = Page(write_report(path))
    assert page.text("Headline figures").startswith("mAP | 0.250 | on the server’s data")
    assert "On the server’s data | Value | mAP | 0.250 | Rank1 | 0.500 | Purity | 0.750" in page.text("results")


def test_without_a_claim_the_clients_come_first(make_run: Callable[..., Path]) -> None:
    found = figures(make_run(held={"mAP": 0.25}, **QUICK))
    assert next(iter(found)) == "Mean accuracy"
    assert "mAP" not in found


def test_a_claim_about_the_clients_chooses_their_metric(make_run: Callable[..., Path]) -> None:
    path = claiming(make_run(metrics=("accuracy", "cosine"), **QUICK), ["cosine", "mean"])
    assert next(iter(figures(path))) == "Mean cosine"
    history = History.from_jsonl(path / "events.jsonl")
    assert main_metric(history) == "cosine"
    assert main_metrics([history]) == ("cosine",)


def test_several_runs_are_compared_by_the_server_and_by_the_clients(make_run: Callable[..., Path]) -> None:
    path = claiming(make_run(held={"mAP": 0.25, "rank1": 0.5}, **QUICK), ["rank1", "server"], ["mAP", "server"])
    plain = make_run("plain", **QUICK)
    histories = [History.from_jsonl(one / "events.jsonl") for one in (path, plain)]
    assert main_metrics(histories) == ("server.rank1", "accuracy")


def test_the_last_value_that_was_measured_is_told_with_its_round(make_run: Callable[..., Path]) -> None:
    path = make_run(held={"mAP": 0.25}, **QUICK)
    claiming(path, ["mAP", "server"], drop=lambda event: event["round"] > 2)
    assert figures(path)["mAP"] == ("0.250", "on the server’s data, after round 2")


def test_a_metric_of_the_clients_that_a_later_stage_does_not_measure_stays(make_run: Callable[..., Path]) -> None:
    path = make_run(metrics=("accuracy",), **QUICK)
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "evaluation" and event["round"] > 2:
            for values in (event["mean"], event["pooled"], *event["clients"].values()):
                values["masked_l1"] = values.pop("accuracy")
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert figures(path)["Mean accuracy"] == ("16.0 %", "over clients, after round 2")


@pytest.mark.parametrize("named", [["mAP"], "mAP", [["mAP", "nowhere"]], [["other", "server"]], [[]], [7], None])
def test_claims_that_say_nothing_are_passed_over(make_run: Callable[..., Path], named: Any) -> None:
    path = make_run(held={"mAP": 0.25}, **QUICK)
    claiming(path, *(named if isinstance(named, Sequence) else [named]))
    assert claims(History.from_jsonl(path / "events.jsonl")) == []
    assert next(iter(figures(path))) == "Mean accuracy"


def test_a_terminal_shows_the_claim_first(make_run: Callable[..., Path]) -> None:
    path = claiming(make_run(held={"purity": 0.75, "rank1": 0.5, "mAP": 0.25}, **QUICK), ["rank1", "server"])
    shown = io.StringIO()
    Console(file=shown, width=200).print(result_table(History.from_jsonl(path / "events.jsonl")))
    assert "server   rank1 0.500, mAP 0.250, purity 0.750" in shown.getvalue()
