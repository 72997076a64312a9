"""Events pass through a log that repeats lines, loses some, and mixes others in."""

from __future__ import annotations

import io
import json

import pytest

from fedlab.tracking import Tracker
from fedlab.tracking.stream import PREFIX, EventStream, StreamSink


@pytest.fixture
def lines() -> list[str]:
    """What a server prints."""
    out = io.StringIO()
    tracker = Tracker([StreamSink(out)])
    tracker.emit("phase_start", round=1, phase="train", total=2)
    tracker.emit("work", spans=[])
    tracker.emit("warning", message="a line\nof two lines — FEDLAB-EVENT {")
    tracker.emit("ledger", round=1, rows=[])
    tracker.emit("round", round=1, train={"loss": float("nan")})
    return out.getvalue().splitlines(keepends=True)


def read(stream: EventStream, lines: list[str]) -> list[str]:
    return [event["event"] for line in lines if (event := stream.read(line)) is not None]


def test_events_arrive_as_they_were_printed(lines: list[str]) -> None:
    stream = EventStream()
    found = [stream.read(line) for line in lines]
    assert [event["event"] for event in found if event] == ["phase_start", "warning", "round"]
    assert found[1] is not None
    assert found[1]["message"] == "a line\nof two lines — FEDLAB-EVENT {"
    assert found[2] is not None
    assert found[2]["train"] == {"loss": None}
    assert "number" not in found[0]  # type: ignore[operator]
    assert stream.missed == 0


def test_large_events_that_nobody_watches_are_not_sent(lines: list[str]) -> None:
    assert len(lines) == 3
    assert all(line.startswith(PREFIX) and line.isascii() for line in lines)


def test_repeated_lines_count_once(lines: list[str]) -> None:
    stream = EventStream()
    assert read(stream, [*lines[:2], *lines, *lines]) == ["phase_start", "warning", "round"]
    assert stream.missed == 0


def test_lost_and_damaged_lines_are_counted(lines: list[str]) -> None:
    for lossy in ([lines[0], lines[2]], [lines[0], lines[1][:40], lines[2]]):
        stream = EventStream()
        assert read(stream, lossy) == ["phase_start", "round"]
        assert stream.missed == 1


def test_other_output_is_no_event(lines: list[str]) -> None:
    stream = EventStream()
    noise = [
        "INFO : something\n",
        "",
        PREFIX,
        PREFIX + "[1]\n",
        PREFIX + '{"event": 5, "number": 1}\n',
        PREFIX + "null\n",
    ]
    assert read(stream, noise) == []
    assert read(stream, [f"no line break {lines[0]}", *lines[1:]]) == ["phase_start", "warning", "round"]


def test_each_event_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Out:
        def write(self, text: str) -> int:
            calls.append(text)
            return len(text)

    Tracker([StreamSink(Out())]).emit("artifact", name="x", path="y")  # type: ignore[arg-type]
    (only,) = calls
    assert json.loads(only.removeprefix(PREFIX))["name"] == "x"
    assert only.endswith("\n")
