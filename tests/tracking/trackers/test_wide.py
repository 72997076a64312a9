"""The table by round: every number in its place, also when a run goes on."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pandas
import pytest

from fedlab.config import Config, parse
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.table import rows
from fedlab.tracking.trackers import TrackedRun
from fedlab.tracking.trackers.wide import WideCsv

Stream = list[dict[str, Any]]


@pytest.fixture
def config() -> Config:
    return parse(Config, {"method": "supervised", "data": {"source": "digits"}})


def opened(root: Path, config: Config, resumed: int | None = None) -> WideCsv:
    tracker = WideCsv(WideCsv.Settings(), "tracking.trackers.0")
    tracker.open(TrackedRun(RunFolder(root), config, resumed))
    return tracker


def read(root: Path) -> dict[int, dict[str, str]]:
    with (root / "rounds.csv").open(newline="") as file:
        return {int(row["round"]): row for row in csv.DictReader(file)}


def test_every_number_has_its_place(root: Path, stream: Stream, config: Config) -> None:
    tracker = opened(root, config)
    for event in stream:
        tracker.write(event)
        found = read(root)  # the file is whole after every event
    tracker.close()
    expected = {(row.round, row.tag): row.value for event in stream for row in rows(event)}
    told = {
        (round, tag): float(value)
        for round, row in found.items()
        for tag, value in row.items()
        if tag != "round" and value
    }
    assert told.keys() == expected.keys()
    assert all(told[key] == value or math.isnan(value) for key, value in expected.items())
    assert list(found) == [0, 1, 2]
    frame = pandas.read_csv(root / "rounds.csv", index_col="round")
    assert frame.loc[2, "accuracy/mean"] == 0.625


def test_a_row_is_written_over_as_its_numbers_come(root: Path, config: Config) -> None:
    tracker = opened(root, config)
    for round in (1, 2, 3):
        for phase, seconds in (("train", 2.0 * round), ("server", 0.5)):
            tracker.write({"event": "phase_end", "round": round, "phase": phase, "seconds": seconds})
    assert (root / "rounds.csv").read_text() == (
        "round,seconds/train,seconds/server\n1,2.0,0.5\n2,4.0,0.5\n3,6.0,0.5\n"
    )


def test_rounds_that_are_repeated_are_not_there_twice(root: Path, config: Config) -> None:
    def phase(round: int, seconds: float) -> dict[str, Any]:
        return {"event": "phase_end", "round": round, "phase": "train", "seconds": seconds}

    whole = opened(root, config)
    for round in (0, 1, 2, 3):
        whole.write(phase(round, 1.0))
    again = opened(root, config, resumed=2)
    assert list(read(root)) == [0, 1, 2]
    again.write(phase(0, 5.0))  # the preflight of the process that goes on
    again.write(phase(3, 7.0))
    assert {round: row["seconds/train"] for round, row in read(root).items()} == {
        0: "5.0", 1: "1.0", 2: "1.0", 3: "7.0",
    }  # fmt: skip
    opened(root, config, resumed=0)
    assert read(root) == {}
