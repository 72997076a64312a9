from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab.tracking import History, Tracker
from fedlab.tracking.jsonl import JsonlSink


class Listener:
    def __init__(self, fails_at: str = "", close_error: BaseException | None = None) -> None:
        self.heard: list[dict[str, Any]] = []
        self.fails_at, self.close_error, self.closed = fails_at, close_error, 0

    def write(self, event: dict[str, Any]) -> None:
        if event["event"] == self.fails_at:
            raise RuntimeError("server gone")
        self.heard.append(event)

    def close(self) -> None:
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


def test_a_failing_listener_is_closed_and_dropped_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    broken, sound, essential = Listener(fails_at="round"), Listener(), Listener()
    tracker = Tracker([essential], [broken, sound])
    with caplog.at_level(logging.WARNING):
        for kind in ("run_start", "round", "round", "run_end"):
            tracker.emit(kind)
    tracker.close()
    assert [event["event"] for event in broken.heard] == ["run_start"]
    assert broken.closed == 1
    for listener in (sound, essential):
        assert [event["event"] for event in listener.heard] == ["run_start", "round", "round", "run_end"]
        assert listener.closed == 1
    assert "Listener failed and is left out from now on: server gone" in caplog.text


def test_an_essential_listener_that_fails_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="server gone"):
        Tracker([Listener(fails_at="round")]).emit("round")


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_all_are_closed_whatever_one_of_them_raises(error: BaseException) -> None:
    listeners = [Listener(), Listener(close_error=error), Listener()]
    tracker = Tracker(listeners[:1], listeners[1:])
    try:
        tracker.close()
    except KeyboardInterrupt:
        assert isinstance(error, KeyboardInterrupt)
    assert [listener.closed for listener in listeners] == [1, 1, 1]


def test_values_become_json(tmp_path: Path) -> None:
    tracker = Tracker([JsonlSink(tmp_path / "events.jsonl")])
    values = {"nan": math.nan, "inf": np.float32(np.inf), "array": np.arange(2), 3: (True, Path("x"), range(2))}
    tracker.emit("client", round=np.int64(1), client=0, metrics=values)
    tracker.emit("progress", round=1, phase="train", done=1, total=2)
    tracker.close()
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert event["metrics"] == {"nan": None, "inf": None, "array": [0, 1], "3": [True, "x", [0, 1]]}
    assert event["round"] == 1


def test_history_answers_from_the_events(stream: list[dict[str, Any]]) -> None:
    history = History(stream)
    assert history.start["method"] == "fedlgd"
    assert history.end["status"] == "completed"
    assert history.series("accuracy") == [(2, 0.625)]
    assert history.series("accuracy", "c") == [(2, 0.75)]
    assert history.series("loss") == []
    assert history.logged("ce") == [(2, 0.7071)]
    assert history.logged("gm", "server") == [(1, 12.25), (2, 12.25)]
    assert history.bytes_total() == (600, 240)
    assert history.seconds_by_phase() == {"prepare": 1, "train": 4, "evaluate": 1}


def test_a_line_torn_by_a_crash_is_left_out(tmp_path: Path, stream: list[dict[str, Any]]) -> None:
    path = tmp_path / "events.jsonl"
    lines = [json.dumps(event, ensure_ascii=False) for event in [*stream[:3], {"event": "warning", "message": "αβγ"}]]
    whole = "\n".join(lines).encode()
    for cut in range(len(whole) - 12, len(whole)):
        path.write_bytes(whole[:cut])
        assert list(History.from_jsonl(path).events) == stream[:3]
    assert History.from_jsonl(tmp_path / "none.jsonl").events == ()


def test_damaged_lines_are_counted(tmp_path: Path, stream: list[dict[str, Any]]) -> None:
    path = tmp_path / "events.jsonl"
    lines = [json.dumps(event) for event in stream]
    lines[1:1] = ["", "3", '{"event": "warn', '{"round": 2}', "x"]
    path.write_text("\n".join([*lines, '{"event": "run_']))
    history = History.from_jsonl(path)
    assert list(history.events[1:]) == stream
    (left,) = history.left_out
    assert (left.count, left.total, left.what) == (5, len(lines) + 1, "lines of events.jsonl")
    assert "(line 2, line 3, line 4, …)" in str(left)
    assert history.until(1).left_out == [left], "a resumed run still says so"
