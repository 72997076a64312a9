"""A run's history as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedlab.errors import ConfigError
from fedlab.tracking import History

EVENTS: list[dict[str, Any]] = [
    {"event": "run_start", "seed": 0},
    {"event": "client", "round": 1, "client": 4, "metrics": {"ce": 2.5, "seconds": 0.5}},
    {"event": "client", "round": 1, "client": 7, "metrics": {"ce": 1.5}},
    {
        "event": "round", "round": 1, "clients": [4, 7], "train": {"ce": 2.0}, "server": {"kd": 3.0}, "bytes_down": 20,
        "bytes_up": 10, "seconds": {"train": 1.25}, "virtual": {"total": 9.0}, "bytes": {"model": {}},
    },
    {
        "event": "evaluation", "round": 1, "clients": {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.75, "loss": 1.0}},
        "mean": {"accuracy": 0.625}, "pooled": {}, "unseen": {"accuracy": 0.75}, "unseen_clients": ["b"],
        "server": {"map": 0.25}, "strategy": {}, "samples": {"a": 3, "b": 5},
    },
]  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> History:
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    return History.from_jsonl(file)


def records(frame: Any) -> list[dict[str, Any]]:
    """Rows of a table without the values that are missing."""
    return [
        {name: value for name, value in row.items() if value == value and value is not None}
        for row in frame.to_dict("records")
    ]


def test_evaluations_have_a_row_for_each_client_and_scope(history: History) -> None:
    frame = history.frame()
    assert list(frame.columns) == ["round", "scope", "client", "unseen", "samples", "accuracy", "loss", "map"]
    assert records(frame) == [
        {"round": 1, "scope": "client", "client": "a", "unseen": False, "samples": 3, "accuracy": 0.5},
        {"round": 1, "scope": "client", "client": "b", "unseen": True, "samples": 5, "accuracy": 0.75, "loss": 1.0},
        {"round": 1, "scope": "mean", "unseen": False, "accuracy": 0.625},
        {"round": 1, "scope": "unseen", "unseen": True, "accuracy": 0.75},
        {"round": 1, "scope": "server", "unseen": False, "map": 0.25},
    ]
    trained = frame.query("scope == 'client' and not unseen")
    assert trained["accuracy"].mean() == 0.5


def test_rounds_have_seconds_bytes_and_what_was_logged(history: History) -> None:
    frame = history.frame("rounds")
    assert records(frame) == [
        {
            "round": 1, "clients": 2, "bytes_down": 20, "bytes_up": 10, "seconds.train": 1.25, "virtual.total": 9.0,
            "train.ce": 2.0, "server.kd": 3.0,
        }
    ]  # fmt: skip


def test_clients_have_a_row_for_each_training(history: History) -> None:
    assert records(history.frame("clients")) == [
        {"round": 1, "client": 4, "ce": 2.5, "seconds": 0.5},
        {"round": 1, "client": 7, "ce": 1.5},
    ]


def test_a_run_that_has_not_got_that_far_has_empty_tables() -> None:
    assert list(History().frame("rounds").columns) == ["round", "clients", "bytes_down", "bytes_up"]
    assert len(History().frame()) == 0


def test_another_kind_is_refused(history: History) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        history.frame("round")
