"""What a notebook shows of runs, data sets and comparisons: all that the terminal shows, with every name escaped."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

import fedlab
from fedlab.data.samples import Dataset
from fedlab.report.tables import result_table
from fedlab.tracking.left_out import LeftOut
from fedlab.tracking.notebook import picture_html, progress_html, to_html

EVIL = '<script>alert("x")</script>&'


def texts(page: str) -> list[str]:
    """The texts between the tags."""
    return [html.unescape(text) for text in re.findall(r">([^<>]+)<", page)]


def test_a_table_keeps_its_cells_their_order_and_their_sides() -> None:
    table = Table(title="Results")
    table.add_column("client")
    table.add_column(Text("accuracy"), justify="right")
    table.add_row(Text("a [bold]b[/]"), "50 %")
    table.add_row("mean", "60 %", style="bold")
    page = to_html([table, Text("status  completed", style="green")])
    assert texts(page) == ["Results", "client", "accuracy", "a [bold]b[/]", "50 %", "mean", "60 %", "status  completed"]
    assert re.findall(r"<(t[hd]) style=\"text-align: (\w+)\">", page) == [
        ("th", "left"), ("th", "right"), ("td", "left"), ("td", "right"), ("th", "left"), ("th", "right"),
    ]  # fmt: skip


def test_nothing_in_a_name_is_read_as_html() -> None:
    table = Table(title=Text(EVIL))
    table.add_column(Text(EVIL))
    table.add_row(Text(EVIL))
    for page in (to_html([table, EVIL]), progress_html(1, 2, EVIL), picture_html(b"", EVIL + "'")):
        assert "<script" not in page
        assert html.escape(EVIL) in page


def test_progress_is_a_bar_of_rounds() -> None:
    assert '<progress value="3" max="40"></progress> round 4/40' in progress_html(3, 40, "round 4/40")
    assert 'max="1"' in progress_html(0, 0, "")  # a bar without an end would be a bar that runs for ever


def test_a_picture_is_in_the_page() -> None:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', picture_html(b"\x89PNG", "curves"))
    assert base64.b64decode(data) == b"\x89PNG"


def data(**more: Any) -> Dataset:
    rng = np.random.default_rng(0)
    images, labels = rng.random((60, 6, 5), np.float32), np.array(["cat", EVIL] * 30)
    owners = np.array([f"site {number % 30:02}" for number in range(60)])
    made = fedlab.from_arrays(
        images[:40], labels[:40], images[40:], labels[40:], groups=(owners[:40], owners[40:]), name=f"mine {EVIL}"
    )
    return Dataset(made.name, made.train, made.test, **more)


def test_a_data_set_shows_its_samples_columns_and_classes() -> None:
    left = LeftOut("files", 3, f"broken {EVIL}")
    shown = texts(data(left_out=(left,), warnings=("be careful",))._repr_html_())
    assert shown[:5] == [f"mine {EVIL}", "samples", "classes", "columns", "train"]
    assert shown[4:7] == ["train", "40", "2"]
    assert "image 1×6×5 float32" in shown[7]
    assert "label int64" in shown[7]
    assert shown[8:11] == ["test", "20", "2"]
    rest = shown[12:]
    assert rest[0] == f"classes: {EVIL}, cat"
    assert rest[1].startswith("owners: site 00, site 01, ")
    assert rest[1].endswith("site 19 and 10 more")
    assert rest[2:] == [f"warning: 3 files left out: broken {EVIL}.", "warning: be careful"]


BASE: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "federation": {"rounds": 1},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[fedlab.Run]:
    """Two runs on samples of owners with a dangerous name."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("runs")
    images, labels = rng.random((60, 8, 8), np.float32), np.arange(60) % 3
    owners = np.array(["ann", EVIL] * 30)
    mine = fedlab.from_arrays(images[:40], labels[:40], images[40:], labels[40:], groups=(owners[:40], owners[40:]))
    config = {**BASE, "data": {"source": "digits", "partition": ["natural"]}}
    return [
        fedlab.run(config, data=mine, overrides=[f"training.lr={lr}", f"tracking.folder={folder}"]) for lr in (0.1, 0.2)
    ]


def test_a_run_shows_what_the_terminal_shows(runs: list[fedlab.Run]) -> None:
    run = runs[0]
    page = run._repr_html_()
    shown = texts(page)
    table = next(part for part in result_table(run.history).renderables if isinstance(part, Table))
    cells = [str(cell) for column in table.columns for cell in (column.header, *column.cells) if str(cell)]
    assert cells
    assert set(cells) <= set(shown)
    assert EVIL in shown
    assert "<script" not in page
    assert any(text.startswith("status   completed") for text in shown)
    assert f"folder   {run.path}" in shown
    assert not any(text.startswith("report ") for text in shown)  # there is none


def test_a_run_that_has_not_begun_or_whose_events_are_damaged_can_be_shown(
    runs: list[fedlab.Run], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_bytes(runs[0].folder.config.read_bytes())
    run = fedlab.load(tmp_path)
    assert "no end recorded" in run._repr_html_()
    (tmp_path / "events.jsonl").write_text('{"event": "evaluation"}\n{"event": "run_end"}\n')
    assert "unread" in run._repr_html_()


def test_a_comparison_shows_its_tables_and_curves(runs: list[fedlab.Run]) -> None:
    found = fedlab.compare(runs)
    assert isinstance(found, fedlab.Comparison)
    page = found._repr_html_()
    shown = texts(page)
    for rows in (found.runs(), found.settings(), found.results()):
        assert {cell for row in rows for cell in row if cell} <= set(shown)
    assert found.equal_weights() in shown
    assert page.count("<img") == len(found.metrics) == 1
    alike = fedlab.compare([runs[0], runs[1]], metrics=["loss"])._repr_html_()
    assert "loss over the rounds" in alike


def test_runs_and_their_folders_are_compared_alike(runs: list[fedlab.Run]) -> None:
    assert fedlab.compare(runs).runs() == fedlab.compare([str(runs[0].path), runs[1].path]).runs()
