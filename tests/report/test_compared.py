"""The page of a comparison: its curves, labels and pictures, read back as HTML."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from fedlab.report.charts import _apart, compared_chart
from fedlab.report.compared import Compared, Side
from fedlab.report.record import RunRecord
from fedlab.report.spread import Spread
from tests.report.pages import Page

QUICK = {"logs": False, "metrics": ("accuracy", "loss")}


def side(letter: str, words: str, *paths: Path) -> Side:
    return Side(letter, words, {seed: RunRecord.open(path) for seed, path in enumerate(paths)})


def compared(*sides: Side, **what: Any) -> Compared:
    rows = [["", *(one.letter for one in sides)]]
    settings = [["key", *(one.letter for one in sides)], ["training.lr", *(one.words for one in sides)]]
    return Compared(sides, ("accuracy",), rows, settings, [["", "run"], ["A", "runs/a"]], **what)


def read(page: Compared, tmp_path: Path) -> Any:
    path = tmp_path / "page.html"
    path.write_text(page.page(), encoding="utf-8")
    return Page(path)


@pytest.mark.usefixtures("drawn_charts")
def test_the_curves_of_all_runs_are_in_one_chart_with_their_names(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    page = read(
        compared(side("A", "lr=0.1", make_run("a", **QUICK)), side("B", "lr=1", make_run("b", rounds=2, **QUICK))),
        tmp_path,
    )
    curves = page.sections["curves"]
    assert "Accuracy, test samples, mean over clients" in curves
    assert "Loss, test samples, mean over clients" in curves
    assert curves.count("A lr=0.1") == curves.count("B lr=1") == 2
    assert "accuracy (%)" in curves
    assert "(%)" not in curves[curves.index("Loss, test samples, mean over clients") + 1 :]
    assert "key | A | B | training.lr | lr=0.1 | lr=1" in page.text("settings")
    assert "2 runs compared" in page.text("")


@pytest.mark.usefixtures("drawn_charts")
def test_where_no_words_tell_letters_stand_in_the_charts(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page = read(compared(side("A", "", make_run("a", **QUICK)), side("B", "", make_run("b", **QUICK))), tmp_path)
    curves = page.sections["curves"]
    assert curves.count("A") == curves.count("B") == 2
    assert "letter | run | A | runs/a" in page.text("runs")


def test_pictures_of_one_name_stand_side_by_side(make_run: Callable[..., Path], tmp_path: Path) -> None:
    without = make_run("c", pictures=False, **QUICK)
    sides = [side("A", "lr=0.1", make_run("a", **QUICK)), side("B", "lr=1", make_run("b", **QUICK))]
    page = read(compared(*sides, side("C", "lr=2", without)), tmp_path)
    text = page.text("pictures")
    both = "A lr=0.1 · seed 0 · after round 4, the last | B lr=1 · seed 0 · after round 4, the last"
    assert f"Virtual global | One column per class. Not drawn by: C. | {both}" in text
    assert f"Virtual local | One column per class. Not drawn by: C. | {both}" in text
    assert len(page.all("img")) == 4
    sources = [image["src"] for image in page.all("img")]
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)


def test_what_some_runs_did_not_measure_is_said(make_run: Callable[..., Path], tmp_path: Path) -> None:
    some = make_run("b", logs=False, metrics=("accuracy",))
    page = read(compared(side("A", "x", make_run("a", **QUICK)), side("B", "y", some)), tmp_path)
    assert "Not measured: B." in page.text("curves")


def test_alarms_and_notes_stand_on_the_page(make_run: Callable[..., Path], tmp_path: Path) -> None:
    bad = make_run("b", **QUICK)
    with (bad / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "warning", "message": "<b>collapsed</b>", "level": "alarm", "round": 1}) + "\n")
    page = read(
        compared(side("A", "", make_run("a", **QUICK)), side("B", "", bad), notes=["equal weights", ""]), tmp_path
    )
    assert "B, seed 0: <b>collapsed</b>" in page.text("Alarms")
    assert "equal weights" in page.text("settings")
    assert not page.all("b")


def lines(values: Mapping[str, float]) -> dict[str, dict[int, Spread]]:
    return {label: {1: Spread(value, 0.01, 2), 2: Spread(value, None, 1)} for label, value in values.items()}


@pytest.mark.usefixtures("drawn_charts")
def test_a_band_of_one_deviation_is_drawn_in_the_unit_of_the_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    bands: list[tuple[list[float], list[float]]] = []
    usual = Axes.fill_between

    def seen(axes: Axes, rounds: Any, low: Any, high: Any, **look: Any) -> Any:
        bands.append((list(low), list(high)))
        return usual(axes, rounds, low, high, **look)

    monkeypatch.setattr(Axes, "fill_between", seen)
    some = {**lines({"A": 0.5}), "none": {}, **lines({"B": 0.25})}
    svg = str(compared_chart("c", some, ylabel="accuracy (%)", span=(1, 2), percent=True))
    assert "at the end: A 50, B 25." in svg
    assert [low for low, _ in bands] == [pytest.approx([49, 50]), pytest.approx([24, 25])]
    assert [high for _, high in bands] == [pytest.approx([51, 50]), pytest.approx([26, 25])]
    assert "--series-0" in svg
    assert "--series-1" not in svg, "the color of a run without values is not given to another"
    assert "--series-2" in svg


def test_many_names_beside_the_curves_do_not_overlap() -> None:
    heights, size = [0.5] * 20, 0.05
    placed = _apart(heights, [size] * 20)
    gaps = [after - before for before, after in itertools.pairwise(placed)]
    assert min(gaps) == pytest.approx(size)
    assert min(placed) >= 0
    assert max(placed) <= 1.0 + 1e-9
    assert _apart([0.2, 0.21, 0.9], [0.1, 0.2, 0.1]) == pytest.approx([0.2, 0.35, 0.9]), "half of each size between two"
