"""Counting what was left out, and telling it."""

from __future__ import annotations

import json
from pathlib import Path

from fedlab.tracking import History
from fedlab.tracking.left_out import LeftOut

FILES = LeftOut("files", 3, "their ending is unknown", 12, "rename them", ("a.xyz", "b.xyz", "c.xyz"))


def test_it_says_how_many_of_how_many_why_and_what_to_do() -> None:
    assert str(FILES) == "3 of 12 files left out: their ending is unknown (a.xyz, b.xyz, c.xyz). To do: rename them"
    assert str(LeftOut("test samples", 1200, "nobody tests them")) == "1,200 test samples left out: nobody tests them."


def test_more_than_three_examples_are_cut() -> None:
    many = LeftOut("files", 9, "broken", examples=tuple("abcdef"))
    assert str(many) == "9 files left out: broken (a, b, c, …)."


def test_events_give_it_back_and_those_of_rounds_add_up(tmp_path: Path) -> None:
    steps = [LeftOut("steps", n, "the deadline came first", 10) for n in (2, 3)]
    events = [{"event": "left_out", **FILES.fields()}] * 2  # a run that was resumed tells it again
    events += [{"event": "left_out", "round": round, **left.fields()} for round, left in enumerate(steps, start=1)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = History.from_jsonl(tmp_path / "events.jsonl").left_out
    assert found == [FILES, LeftOut("steps", 5, "the deadline came first", 20)]
