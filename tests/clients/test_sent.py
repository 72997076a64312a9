"""A node's record of what leaves it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedlab.clients import sent
from fedlab.clients.sent import FILE, record_sent
from fedlab.config.node import state_folder
from fedlab.engine.execution import set_task_identity


@pytest.fixture(autouse=True)
def _message_can_be_made() -> None:
    set_task_identity()


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(7, 1, {"partition-id": 0, "state-dir": str(tmp_path / "state")}, RecordDict(), {})


def asked() -> Message:
    return Message(RecordDict(), 1, "train")


def answer(message: Message, context: Context) -> Message:
    weights = ArrayRecord({"w": Array(np.zeros((2, 3), np.float32))})
    metrics = MetricRecord({"loss": 0.5, "n": 3, "seconds": [0.1, 1.0]})
    config = ConfigRecord({"name": "berlin", "classes": ["cat", "dog"], "unseen": False})
    return Message(RecordDict({"arrays": weights, "metrics": metrics, "config": config}), reply_to=message)


def recorded(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_every_value_is_named_with_its_kind_and_none_is_written(context: Context, tmp_path: Path) -> None:
    reply = record_sent(asked(), context, answer)
    assert reply.content["metrics"]["loss"] == 0.5
    record_sent(asked(), context, answer)
    first, second = recorded(tmp_path / "state")
    assert first["records"] == second["records"]
    assert (first["run"], first["message"]) == (7, "train")
    data = len(ArrayRecord({"w": Array(np.zeros((2, 3), np.float32))})["w"].data)
    assert first["records"] == {
        "arrays": {"type": "ArrayRecord", "values": {"w": ["float32", [2, 3], data]}},
        "metrics": {
            "type": "MetricRecord",
            "values": {"loss": ["float", []], "n": ["int", []], "seconds": ["list of float", [2]]},
        },
        "config": {
            "type": "ConfigRecord",
            "values": {"name": ["str", []], "classes": ["list of str", [2]], "unseen": ["bool", []]},
        },
    }
    assert "berlin" not in (tmp_path / "state" / FILE).read_text()


def test_the_text_of_an_error_is_recorded(context: Context, tmp_path: Path) -> None:
    record_sent(asked(), context, lambda message, _: Message(Error(2, "no such file: /data/x"), reply_to=message))
    (only,) = recorded(tmp_path / "state")
    assert only["error"] == "no such file: /data/x"


def test_what_cannot_be_recorded_is_not_sent(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, line: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sent, "_append", full)
    reply = record_sent(asked(), context, answer)
    assert reply.has_error()
    assert "No space left on device" in reply.error.reason
    assert str(tmp_path / "state" / FILE) in reply.error.reason


def test_a_long_record_is_put_aside(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sent, "_LONGEST", 10)
    for _ in range(3):
        record_sent(asked(), context, answer)
    assert len(recorded(tmp_path / "state")) == 1
    assert len((tmp_path / "state" / f"{FILE}.1").read_text().splitlines()) == 1


def test_the_folder_is_that_of_the_nodes_file(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("site: berlin\ndata: digits\nstate: kept\n")
    assert state_folder({"node-file": str(file)}) == tmp_path / "kept"
    file.write_text("site: berlin\ndatta: digits\n")
    context = Context(7, 1, {"node-file": str(file)}, RecordDict(), {})
    assert not record_sent(asked(), context, answer).has_error()
    assert [path.name for path in tmp_path.iterdir()] == ["node.yaml"]
