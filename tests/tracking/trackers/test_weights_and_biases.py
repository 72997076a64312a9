"""Weights & Biases: what is refused before a run, and that an offline run arrives whole in its files."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlab.config import Config, parse
from fedlab.errors import ConfigError
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.trackers import TrackedRun
from fedlab.tracking.trackers.weights_and_biases import WeightsAndBiases

Stream = list[dict[str, Any]]
KEY = "tracking.trackers.0"


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def tracker(**settings: Any) -> WeightsAndBiases:
    return WeightsAndBiases(WeightsAndBiases.Settings(**settings), KEY)


def test_a_missing_package_is_an_error_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{KEY} = 'wandb'(.|\n)*pip install 'fedlab-sim\[wandb\]'"):
        tracker(mode="offline").check()


def test_online_needs_a_key_and_says_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(ConfigError, match=rf"{KEY}\.mode = 'online'(.|\n)*WANDB_API_KEY(.|\n)*mode: offline"):
        tracker().check()
    assert tracker(mode="offline").check() == ()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracker().check() == ()
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / ".netrc").write_text("machine elsewhere login user password x\n")
    with pytest.raises(ConfigError, match="an account"):
        tracker().check()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert tracker().check() == ()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    with pytest.raises(ConfigError, match="an account"):
        tracker().check()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert tracker().check() == ()


def test_a_damaged_file_of_logins_is_named_without_its_words(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\nlogin user passwort geheim\n")
    with pytest.raises(ConfigError, match=r"\.netrc cannot be read from line 2") as caught:
        tracker().check()
    assert "geheim" not in str(caught.value)


@pytest.fixture
def config() -> Config:
    raw = {"method": "fedlgd", "data": {"source": "digits"}, "tracking": {"mlflow": "http://me:geheim@host"}}
    return parse(Config, raw)


@pytest.fixture
def sent(root: Path, stream: Stream, config: Config, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The records of the file of an offline run."""
    monkeypatch.setattr(sys, "argv", ["fedlab", "run", "x.yaml", "--set", "tracking.mlflow=http://me:geheim@host"])
    wandb = pytest.importorskip("wandb")
    one = tracker(mode="offline", project="toy", tags=("a", "b"))
    assert one.check() == ()
    one.open(TrackedRun(RunFolder(root), config))
    for event in stream:
        one.write(event)
    one.close()
    wandb.teardown()  # ends the process that writes the file, and waits for it
    return list(records(root))


def records(root: Path) -> Iterator[Any]:
    """The file is a log as LevelDB has it, after a head of seven bytes: blocks of 32 KiB with parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (root / "wandb").glob("offline-run-*/run-*.wandb")
    data, place, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.programs
def test_an_offline_run_holds_what_was_sent(root: Path, sent: list[Any]) -> None:
    kinds = {record.WhichOneof("record_type") for record in sent}
    assert {"run", "history", "exit"} <= kinds
    (run,) = [record.run for record in sent if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, run.run_group, list(run.tags)) == ("toy", "run", "run", ["a", "b"])
    told = {item.key: item.value_json for item in run.config.update}
    assert json.loads(told["method"])["name"] == "fedlgd"
    assert not any("geheim" in str(record) for record in sent)
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in sent
        if record.WhichOneof("record_type") == "history"
    ]
    by_round = [(row["round"], row["accuracy/mean"]) for row in history if "accuracy/mean" in row]
    assert by_round == [(2, 0.625)]
    assert [(row["round"], row["train/seconds"]) for row in history if "train/seconds" in row] == [(1, 0.5), (2, 0.5)]
    (picture,) = [row for row in history if "figures/virtual._type" in row]
    assert (picture["round"], picture["figures/virtual.width"], picture["figures/virtual.height"]) == (0, 2, 3)
    (ended,) = [record.exit for record in sent if record.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0
    assert not (root.parent / "wandb").exists()
