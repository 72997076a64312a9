"""A program that is ended from outside still leaves a run that says how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedlab
from fedlab.experiment.last_words import REASON, record_end, witnessed
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking import History
from fedlab.tracking.jsonl import jsonl_line

START = {"event": "run_start", "time": 100.0, "method": "supervised", "rounds": 3}
ROUND = {"event": "round", "time": 101.0, "round": 1}
THEN = "go on with: fedlab resume RUN"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path, "run", "supervised", 0)
    made.config.write_text("method: supervised\n")
    made.events.write_text(jsonl_line(START) + jsonl_line(ROUND))
    return made


def test_an_open_run_is_recorded_as_failed_and_what_was_recorded_before_stays(folder: RunFolder) -> None:
    told = record_end(folder.path, report=False, then=THEN)
    history = History.from_jsonl(folder.events)
    assert list(history.events[:2]) == [START, ROUND]
    assert (history.end["status"], history.end["error"]) == ("failed", REASON)
    assert history.end["seconds"] == pytest.approx(history.end["time"] - 100.0)
    assert THEN in told
    assert not folder.report.exists()


def test_a_line_that_was_cut_short_is_as_if_it_had_not_been_begun(folder: RunFolder) -> None:
    folder.events.write_bytes(folder.events.read_bytes() + b'{"event": "round", "rou\xc3')
    record_end(folder.path, report=False, then=THEN)
    history = History.from_jsonl(folder.events)
    assert [event["event"] for event in history.events] == ["run_start", "round", "run_end"]


@pytest.mark.usefixtures("reports")
def test_the_report_is_written_if_asked_for(tmp_path: Path) -> None:
    run = fedlab.run(
        {
            "method": "supervised",
            "model": {"name": "logistic"},
            "data": {
                "source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 20},
                "partition": [{"name": "iid", "clients": 2}],
            },
            "federation": {"rounds": 1},
            "engine": {"name": "inline"},
            "tracking": {"folder": str(tmp_path), "console": "quiet", "tensorboard": False, "report": False},
        }
    )
    lines = run.folder.events.read_text().splitlines(keepends=True)
    run.folder.events.write_text("".join(line for line in lines if '"run_end"' not in line))
    record_end(run.path, report=True, then=THEN)
    assert "ended without a word" in run.folder.report.read_text()


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_an_end_that_was_recorded_stays(folder: RunFolder, status: str) -> None:
    folder.events.write_text(folder.events.read_text() + jsonl_line({"event": "run_end", "status": status}))
    before = folder.events.read_bytes()
    assert record_end(folder.path, report=True, then=THEN) == ""
    assert folder.events.read_bytes() == before
    assert not folder.report.exists()


def test_a_run_that_began_again_after_its_end_is_open(folder: RunFolder) -> None:
    end = jsonl_line({"event": "run_end", "status": "interrupted"})
    folder.events.write_text(folder.events.read_text() + end + jsonl_line({**START, "time": 200.0}))
    record_end(folder.path, report=False, then=THEN)
    end_now = History.from_jsonl(folder.events).end
    assert end_now["status"] == "failed"
    assert end_now["seconds"] == pytest.approx(end_now["time"] - 200.0), "counted from when it began again"


def test_a_run_that_another_process_goes_on_with_is_left_alone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlab.experiment.last_words._PATIENCE", 0.0)
    before = folder.events.read_bytes()
    with folder.writing():
        assert record_end(folder.path, report=True, then=THEN) == ""
    assert folder.events.read_bytes() == before


def test_a_run_of_which_nothing_is_recorded_is_left_alone(folder: RunFolder) -> None:
    folder.events.unlink()
    assert record_end(folder.path, report=True, then=THEN) == ""
    assert not folder.events.exists()


def test_nothing_is_written_when_the_program_takes_its_leave(folder: RunFolder) -> None:
    before = folder.events.read_bytes()
    with witnessed(folder, report=True, then=THEN):
        pass
    with pytest.raises(KeyError), witnessed(folder, report=True, then=THEN):
        raise KeyError
    assert folder.events.read_bytes() == before


PROGRAM = """
import os, signal, sys
from pathlib import Path
from fedlab.experiment.last_words import witnessed
from fedlab.storage.runfolder import RunFolder

folder = RunFolder.open(Path(sys.argv[1]))
with folder.writing(), witnessed(folder, report=False, then="do that"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.programs
def test_a_program_that_is_killed_leaves_a_run_with_an_end(folder: RunFolder) -> None:
    # the output ends only when the process that waited has closed it, too
    command = [sys.executable, "-c", PROGRAM, str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert "do that" in done.stderr
    assert History.from_jsonl(folder.events).end["error"] == REASON
