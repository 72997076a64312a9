"""The timeline: Chrome's trace format, idle shares, and files that a crash has cut short."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.tracking.timeline import TimelineSink


def events(path: Path, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text()) if event["ph"] == phase]


def phase(
    sink: TimelineSink, round: int, spans: list[list[Any]], *, began: float = 100.0, seconds: float = 10.0
) -> None:
    sink.write({"event": "phase_start", "round": round, "phase": "train", "total": len(spans)})
    sink.write({"event": "work", "spans": spans})
    sink.write({"event": "phase_end", "round": round, "phase": "train", "seconds": seconds, "time": began + seconds})


def test_lanes_and_idle_shares(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    with closing(TimelineSink(path)) as sink:
        phase(sink, 1, [[0, 3, "train", 100.0, 6.0], [0, 5, "train", 106.0, 2.0], [1, 4, "train", 100.5, 9.0]])
        phase(sink, 2, [[1, 4, "train", 200.0, 10.001]], began=200.0)
    spans = [(e["name"], e["pid"], e["tid"], e["ts"], e["dur"], e["args"]) for e in events(path, "X")]
    assert spans[0] == ("client 3", 2, 0, 100_000_000, 6_000_000, {"round": 1})
    assert ("train", 1, 0, 100_000_000, 10_000_000, {"round": 1}) in spans
    idle = [event["args"] for event in events(path, "C")][::2]
    # a worker that got nothing is idle, and clocks that differ make nobody more than busy
    assert idle == [{"worker 0": 0.2, "worker 1": 0.1}, {"worker 0": 1.0, "worker 1": 0.0}]
    assert [event["args"]["name"] for event in events(path, "M")] == ["server", "workers", "worker 0", "worker 1"]


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_resumed_run_goes_on_in_the_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "timeline.json"
    with closing(TimelineSink(path)) as sink:
        phase(sink, 1, [[0, 3, "train", 100.0, 6.0]])
    if cut:
        path.write_text(path.read_text().removesuffix("\n]\n")[:-cut])
    with closing(TimelineSink(path)) as sink:
        phase(sink, 2, [[0, 3, "train", 200.0, 6.0]], began=200.0)
    rounds = [event["args"]["round"] for event in events(path, "X")]
    assert rounds == [1, 1, 2, 2]


def test_very_many_spans_are_counted_but_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.tracking.timeline._MOST", 2)
    path = tmp_path / "timeline.json"
    with closing(TimelineSink(path)) as sink:
        phase(sink, 1, [[0, client, "train", 100.0 + client, 1.0] for client in range(5)])
    assert [event["name"] for event in events(path, "X")] == ["client 0", "client 1", "train"]
    assert events(path, "C")[0]["args"] == {"worker 0": 0.5}


def test_a_run_leaves_its_timeline(tmp_path: Path) -> None:
    run = fedlab.run(
        "supervised",
        overrides=[
            "engine.name=inline", "federation.rounds=2", "evaluation.every=1", "model.width=4",
            "data.source.train_per_domain=20", "data.source.test_per_domain=10",
            "tracking.console=quiet",
            "tracking.tensorboard=false",
            f"tracking.folder={tmp_path}",
        ],
    )  # fmt: skip
    found = events(run.folder.timeline, "X")
    phases = [(event["args"]["round"], event["name"]) for event in found if event["cat"] == "phase"]
    assert {(1, "train"), (1, "evaluate"), (2, "train"), (2, "server")} <= set(phases)
    clients = [event for event in found if event["cat"] == "train"]
    assert len(clients) == 2 * run.history.start["clients"]
    assert all(0 <= share <= 1 for event in events(run.folder.timeline, "C") for share in event["args"].values())
