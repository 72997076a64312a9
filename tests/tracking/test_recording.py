from __future__ import annotations

import csv
import importlib.util
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedlab.config import Config, parse
from fedlab.errors import ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking import History, Tracker
from fedlab.tracking.jsonl import JsonlSink
from fedlab.tracking.recording import open_session
from tests.forks import Forks

BASE: dict[str, Any] = {"method": "supervised", "data": {"source": "digits"}}


def make_config(tmp_path: Path, **tracking: Any) -> Config:
    settings = {"folder": str(tmp_path), "console": "quiet", "tensorboard": False, **tracking}
    return parse(Config, {**BASE, "tracking": settings})


def new_folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run", "supervised", 0)


def test_a_run_that_completes_leaves_its_records(tmp_path: Path) -> None:
    config, folder = make_config(tmp_path, tensorboard=True), new_folder(tmp_path)
    with open_session(config, folder, engine="inline", workers=1, command="fedlab run x") as tracker:
        assert folder.config.read_text() == config.to_yaml()
        tracker.emit("phase_end", round=1, phase="train", seconds=2.0)
    history = History.from_jsonl(folder.events)
    assert [event["event"] for event in history.events] == ["run_start", "phase_end", "run_end"]
    assert history.end["status"] == "completed"
    assert json.loads(folder.environment.read_text())["command"] == "fedlab run x"
    with folder.metrics.open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["1", "seconds", "train", "2.0"]]
    assert list(folder.tensorboard.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(("own", "named"), [("", "convnet"), ("CLIP", "CLIP")])
def test_a_run_is_named_after_what_is_trained(tmp_path: Path, own: str, named: str) -> None:
    folder = new_folder(tmp_path)
    with open_session(make_config(tmp_path), folder, engine="inline", workers=1, model=own):
        pass
    assert History.from_jsonl(folder.events).start["model"] == named


@pytest.mark.parametrize(
    ("problem", "status", "error"),
    [
        (ValueError("bad α"), "failed", "ValueError: bad α"),
        (KeyboardInterrupt(), "interrupted", ""),
        (SystemExit(15), "interrupted", ""),
    ],
)
@pytest.mark.parametrize("console", ["quiet", "live"])
def test_the_way_a_run_ended_is_recorded_and_its_error_passed_on(
    tmp_path: Path, problem: BaseException, status: str, error: str, console: str
) -> None:
    folder, streams = new_folder(tmp_path), (sys.stdout, sys.stderr)
    with (
        pytest.raises(type(problem)) as raised,
        open_session(make_config(tmp_path, console=console), folder, engine="inline", workers=1),
    ):
        raise problem
    assert raised.value is problem
    assert (sys.stdout, sys.stderr) == streams
    end = History.from_jsonl(folder.events).end
    assert (end["status"], end["error"]) == (status, error)


def test_a_full_disk_at_the_end_does_not_hide_the_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: JsonlSink, event: dict[str, Any]) -> None:
        if event["event"] == "run_end":
            raise OSError("no space left on device")

    monkeypatch.setattr(JsonlSink, "write", write)
    config = make_config(tmp_path)
    with (
        pytest.raises(ValueError, match="the run's own"),
        open_session(config, new_folder(tmp_path), engine="inline", workers=1),
    ):
        raise ValueError("the run's own")


def test_sigterm_ends_a_run_as_interrupted_and_its_handler_is_put_back(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Ray of this process may have left its own
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            open_session(make_config(tmp_path), folder, engine="inline", workers=1),
        ):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert History.from_jsonl(folder.events).end["status"] == "interrupted"


def test_a_handler_of_the_program_is_left_alone(tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with open_session(make_config(tmp_path), new_folder(tmp_path), engine="inline", workers=1):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_session_opens_in_a_thread(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)

    def work() -> None:
        with open_session(make_config(tmp_path), folder, engine="inline", workers=1):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert History.from_jsonl(folder.events).end["status"] == "completed"


def test_a_ctrl_c_within_a_run_ends_a_process_cleanly(tmp_path: Path, forks: Forks) -> None:
    script = f"""
import os, signal, time
from pathlib import Path
from fedlab.config import Config, parse
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.recording import open_session
tracking = dict(console="live", tensorboard=True)
config = parse(Config, dict(method="supervised", data=dict(source="digits"), tracking=tracking))
folder = RunFolder.create(Path({str(tmp_path)!r}), "run", "supervised", 0)
with open_session(config, folder, engine="inline", workers=1) as tracker:
    tracker.emit("phase_start", round=1, phase="train", total=2)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
"""
    program = tmp_path / "program.py"
    program.write_text(script)
    ended = forks.run([program], cwd=tmp_path)
    assert ended.returncode == -signal.SIGINT, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.rfind("\x1b[?25h") > ended.stderr.rfind("\x1b[?25l") >= 0
    assert "interrupted after" in ended.stderr
    assert History.from_jsonl(tmp_path / "run" / "events.jsonl").end["status"] == "interrupted"


def test_missing_packages_are_told_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, mlflow="sqlite:///x.db")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "mlflow" else found(name, *more)
    )
    with pytest.raises(ConfigErrors, match=r"tracking\.mlflow(.|\n)*pip install 'fedlab-sim\[mlflow\]'"):
        resolve(config)


def test_a_display_that_breaks_costs_no_result(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    with open_session(make_config(tmp_path, tensorboard=True), folder, engine="inline", workers=1) as tracker:
        assert isinstance(tracker, Tracker)
        tracker.emit("figure", name="x", round=0, path="figures/none.png", title="", caption="")
        tracker.emit("phase_end", round=1, phase="train", seconds=2.0)
    assert [e["event"] for e in History.from_jsonl(folder.events).events][-1] == "run_end"
    assert "1,seconds,train,2.0" in folder.metrics.read_text()


def test_a_display_that_does_not_even_open_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no such terminal")

    for name in ("recording.make_console", "recording.TimelineSink", "trackers.tensorboard.TensorBoard.open"):
        monkeypatch.setattr(f"fedlab.tracking.{name}", broken)
    folder = new_folder(tmp_path)
    with open_session(make_config(tmp_path, tensorboard=True), folder, engine="inline", workers=1):
        pass
    history = History.from_jsonl(folder.events)
    assert history.end["status"] == "completed"
    assert [text.partition(":")[0] for text in history.warnings] == [
        "the progress is not shown",
        "no timeline is written",
        "nothing is written for TensorBoard",
    ]
