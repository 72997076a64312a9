from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedlab.report import write_report
from fedlab.report.partition import _brightest, wrapped
from fedlab.report.units import Measured, unit_tables
from fedlab.report.values import byte_cells, time_cells
from tests.report.pages import Page


@pytest.mark.parametrize(
    ("values", "unit", "cells"),
    [
        ([4e6, 5e5, None, 1250], "MB", ["4.00", "0.500", "–", "0.00125"]),
        ([999, 0], "B", ["999", "0.00"]),
        ([12.3456e9, 5e9], "GB", ["12.3", "5.00"]),
        ([None], "B", ["–"]),
    ],
)
def test_bytes_of_a_column_have_the_unit_of_the_largest(
    values: list[float | None], unit: str, cells: list[str]
) -> None:
    assert byte_cells(values) == (unit, cells)


@pytest.mark.parametrize(
    ("values", "unit", "cells"),
    [
        ([8.0, 75.0, 0.25], "s", ["8.00", "75.0", "0.250"]),
        ([299.0], "s", ["299"]),
        ([300.0, 6.0], "min", ["5.00", "0.100"]),
        ([7200.0, 36.0], "h", ["2.00", "0.0100"]),
        ([0.5, 0.001], "ms", ["500", "1.00"]),
        ([0.0], "ms", ["0.00"]),
    ],
)
def test_seconds_of_a_column_have_one_unit(values: list[float | None], unit: str, cells: list[str]) -> None:
    assert time_cells(values) == (unit, cells)


def test_percent_and_other_numbers_are_in_tables_of_their_own() -> None:
    found = [Measured("mAP", 0.5, ("mean",), ("3",)), Measured("probe_accuracy", 0.25, ("pooled",), ("4",))]
    second, first = unit_tables(found, "Metric", of=("Of",), behind=("Round",), note="A note.")
    assert (first.columns, first.rows) == (
        ("Metric", "Of", "Value (%)", "Round"),
        [("Probe accuracy", "pooled", "25.0", "4")],
    )
    assert (second.columns, second.rows) == (("Metric", "Of", "Value", "Round"), [("mAP", "mean", "0.500", "3")])
    assert (second.note, first.note) == ("", "A note.")
    assert [table.note for table in unit_tables(found[1:], "Metric", note="A note.")] == ["A note."]
    assert unit_tables([], "Metric") == []


def test_a_client_with_one_sample_does_not_darken_the_others() -> None:
    even = np.full((60, 10), 0.1)
    assert _brightest(even) == pytest.approx(0.1)
    sparse = even.copy()
    sparse[17] = np.eye(10)[3]
    assert _brightest(sparse) == pytest.approx(0.1)
    assert _brightest(np.eye(10)) == 1.0, "where all clients have one class each, that is the scale"
    assert _brightest(np.array([[0.5, 0.5], [0.4, 0.6]])) == pytest.approx(0.6), "no end is cut off for little"
    assert _brightest(np.zeros((3, 2))) == 1.0


def test_names_take_two_lines_before_they_are_cut() -> None:
    assert wrapped("short") == "short"
    assert wrapped("hospital_of_the_north-site_2") == "hospital_of_the_\nnorth-site_2"
    assert wrapped("a" * 30) == "a" * 20 + "\n" + "a" * 10
    cut = wrapped("x" * 20 + "y" * 60 + "z")
    assert cut.startswith("x" * 20 + "\n")
    assert "…" in cut
    assert cut.endswith("z")
    assert max(map(len, cut.split("\n"))) == 20
    assert wrapped("cost in $") == r"cost in \$"


def test_the_page_of_a_failed_run_shows_where_it_failed(make_run: Callable[..., Path]) -> None:
    path = make_run(rounds=2, end=None, logs=False, pictures=False, metrics=("accuracy",))
    trace = 'Traceback (most recent call last):\\n  File \\"mine.py\\", line 3\\nZeroDivisionError: division by zero'
    with (path / "events.jsonl").open("a") as file:
        file.write(
            '{"event": "run_end", "status": "failed", "seconds": 3.0, "error": "ZeroDivisionError: division by zero", '
            f'"traceback": "{trace}"}}\n'
        )
    text = Page(write_report(path)).text("Error")
    assert "The run failed after round 2 of 4" in text
    assert 'File "mine.py", line 3' in text
