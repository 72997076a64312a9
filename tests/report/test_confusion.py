"""The report's part on classes: the confusion matrix, the table, and the line of `fedlab show`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab.report import write_report
from fedlab.report.confusion import by_class, lowest_classes
from fedlab.tracking import History
from tests.report.pages import Page

Make = Callable[..., Path]
MATRIX = [[8, 2, 0], [0, 5, 0], [3, 1, 6]]
QUICK: dict[str, Any] = {"logs": False, "pictures": False, "metrics": ("accuracy",), "classes": ("cat", "dog", "owl")}


def with_classes(path: Path, matrix: Any, *, recorded: bool = True, **more: Any) -> Path:
    """The run folder with these results by class in each evaluation."""
    counts = np.asarray(matrix)
    fields = {
        "per_class": {"samples": counts.sum(1).tolist(), "correct": counts.diagonal().tolist()},
        "confusion": counts.tolist() if recorded else [],
        **more,
    }
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    told = [{**event, **fields} if event["event"] == "evaluation" else event for event in events]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    return path


@pytest.mark.usefixtures("drawn_charts")
def test_the_page_shows_the_matrix_and_the_classes(make_run: Make) -> None:
    page: Any = Page(write_report(with_classes(make_run(**QUICK), MATRIX)))
    part = page.text("classes")
    assert "Class | Most often taken for | Accuracy | Test samples" in part
    assert "cat | dog (20.0 %) | 80.0 % | 10" in part
    assert "dog | – | 100.0 % | 5" in part
    assert "owl | cat (30.0 %) | 60.0 % | 10" in part
    assert "Confusion matrix of 3 classes after round 4; 76.0 % are on the diagonal." in page.html


def test_many_classes_are_a_table_only(make_run: Make) -> None:
    classes = tuple(f"c{i}" for i in range(41))
    path = make_run(**{**QUICK, "classes": classes})
    page: Any = Page(write_report(with_classes(path, np.eye(41, dtype=int) * 4)))
    part = page.text("classes")
    assert "Confusion matrix" not in part
    assert "c40 | – | 100.0 % | 4" in part


def test_a_matrix_that_was_not_recorded_is_said_to_be_missing(make_run: Make) -> None:
    page: Any = Page(write_report(with_classes(make_run(**QUICK), MATRIX, recorded=False)))
    assert "more than 100 classes are not recorded" in page.text("classes")
    assert "cat | – | 80.0 % | 10" in page.text("classes")


def test_runs_without_results_by_class_have_no_such_part(make_run: Make) -> None:
    path = make_run(**QUICK)
    assert "Most often taken for" not in write_report(path).read_text()
    history = History.from_jsonl(path / "events.jsonl")
    assert by_class(history) is None
    assert lowest_classes(history) == ""


def test_a_class_without_samples_has_no_accuracy(make_run: Make) -> None:
    history = History.from_jsonl(with_classes(make_run(**QUICK), [[2, 0, 0], [0, 0, 0], [1, 0, 1]]) / "events.jsonl")
    found = by_class(history)
    assert found is not None
    assert found.accuracy == {"cat": 1.0, "dog": None, "owl": 0.5}
    assert found.mistaken(1) is None
    assert lowest_classes(history, 2) == "owl 50.0 %, cat 100.0 % (accuracy of the lowest 2 of 3 classes, pooled)"


def test_a_damaged_matrix_costs_no_other_part(make_run: Make) -> None:
    page: Any = Page(write_report(with_classes(make_run(**QUICK), MATRIX, per_class={"samples": [1]})))
    assert "results by class" in page.text("")
    assert "Unweighted mean" in page.text("results")


def test_before_and_after_local_training_share_a_chart(make_run: Make) -> None:
    path = make_run(**{**QUICK, "metrics": ("accuracy", "personalized_accuracy")})
    page: Any = Page(write_report(path))
    assert "Accuracy before and after local training" in page.text("curves")
    assert "Personalized accuracy" in page.text("results")
    plain: Any = Page(write_report(make_run("plain", **QUICK)))
    assert "before and after" not in plain.text("curves")
