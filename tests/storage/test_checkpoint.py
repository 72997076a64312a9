"""Run folders and checkpoints: whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedlab.errors import CheckpointError, ConfigError
from fedlab.storage.checkpoint import (
    is_damaged,
    keep_until,
    latest_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from fedlab.storage.runfolder import RunFolder, write_atomic


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "count": torch.tensor(7), "half": torch.ones(2, dtype=torch.bfloat16)}
    path = save_checkpoint(tmp_path / "round_000004", tensors, {"round": 4, "names": ["x"]})
    loaded, meta = load_checkpoint(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert (meta["round"], meta["names"]) == (4, ["x"])


@pytest.mark.parametrize("edit", [{"round": 5}, {"names": []}, {"format": 3}, {"more": 1}])
def test_facts_that_were_edited_are_refused(tmp_path: Path, edit: dict[str, object]) -> None:
    path = save_checkpoint(tmp_path / "round_000004", {"a": torch.ones(9)}, {"round": 4, "names": ["x"]})
    facts, hashed = path / "checkpoint.json", path / "checkpoint.sha256"
    assert hashed.read_text() == f"{hashlib.sha256(facts.read_bytes()).hexdigest()}  checkpoint.json\n"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), **edit}, indent=1, sort_keys=True))
    with pytest.raises(CheckpointError, match="facts with the recorded hash"):
        load_checkpoint(path)


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    a, b = torch.ones(2), torch.zeros(3)
    one = save_checkpoint(tmp_path / "one", {"a": a, "b": b}, {}) / "tensors.safetensors"
    two = save_checkpoint(tmp_path / "two", {"b": b, "a": a}, {}) / "tensors.safetensors"
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "no json", "torn json", "other format", "no tensors"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = save_checkpoint(tmp_path / "round_000001", {"a": torch.ones(9)}, {"round": 1})
    bad = save_checkpoint(tmp_path / "round_000002", {"a": torch.ones(9)}, {"round": 2})
    tensors, meta = bad / "tensors.safetensors", bad / "checkpoint.json"
    if damage == "flip":
        raw = bytearray(tensors.read_bytes())
        raw[-1] ^= 1
        tensors.write_bytes(raw)
    elif damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif damage == "no json":
        meta.unlink()
    elif damage == "torn json":
        meta.write_text(meta.read_text()[:20])
    elif damage == "other format":
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    else:
        tensors.unlink()
    with pytest.raises(CheckpointError, match="round_000002"):
        load_checkpoint(bad)
    assert latest_checkpoint(tmp_path) == latest_checkpoint(tmp_path) == good
    found, told = newest_checkpoint(tmp_path)
    assert (found, [*told]) == (good, [bad])
    damaged = damage != "no json"  # without it, the run was killed while it wrote the checkpoint
    assert is_damaged(bad) == damaged
    assert len(caplog.messages) == damaged  # said once, however often it is asked for
    assert all("round_000002" in message for message in caplog.messages)
    keep_until(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"round_000001", *(["damaged_round_000002"] * damaged)}


def test_tensors_that_last_are_written_once_and_copies_never(tmp_path: Path) -> None:
    large = {"expert": torch.randn(1000), "other": torch.zeros(2)}
    paths = [
        save_checkpoint(
            tmp_path / f"round_{round:06d}",
            {**large, "w": torch.full((3,), float(round))},
            {"round": round},
            lasting=frozenset(large),
            copies={"shared/w": "w", "shared/expert": "expert"},
        )
        for round in (1, 2)
    ]
    assert len(list(tmp_path.glob("lasting_*"))) == 1
    for round, path in enumerate(paths, start=1):
        assert (path / "tensors.safetensors").stat().st_size < 500
        loaded, meta = load_checkpoint(path)
        assert sorted(loaded) == ["expert", "other", "shared/expert", "shared/w", "w"]
        assert torch.equal(loaded["expert"], large["expert"])
        assert torch.equal(loaded["shared/expert"], large["expert"])
        assert torch.equal(loaded["shared/w"], torch.full((3,), float(round)))
        assert meta["round"] == round


def test_what_was_to_last_and_has_changed_is_written_again(tmp_path: Path) -> None:
    first, second, third = (
        save_checkpoint(tmp_path / f"round_{number}", {"a": torch.full((9,), value)}, {}, lasting={"a"})
        for number, value in (("000001", 1.0), ("000002", 2.0), ("000003", 1.0))
    )
    assert [float(load_checkpoint(path)[0]["a"][0]) for path in (first, second, third)] == [1.0, 2.0, 1.0]
    assert len(list(tmp_path.glob("lasting_*"))) == 2
    (second / "checkpoint.json").unlink()  # as if the run had been killed while it wrote this checkpoint
    keep_until(tmp_path, 1)
    assert len(list(tmp_path.glob("lasting_*"))) == 1, "nothing needs the second version any more"
    assert float(load_checkpoint(first)[0]["a"][0]) == 1.0


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_damaged_tensors_that_last_make_their_checkpoints_unusable(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(tmp_path / "round_000001", {"a": torch.ones(9), "w": torch.ones(1)}, {}, lasting={"a"})
    (beside,) = tmp_path.glob("lasting_*")
    if damage == "flip":
        raw = bytearray(beside.read_bytes())
        raw[-1] ^= 1
        beside.write_bytes(raw)
    else:
        beside.unlink()
    with pytest.raises(CheckpointError, match="recorded hash" if damage == "flip" else "complete"):
        load_checkpoint(path)
    assert newest_checkpoint(tmp_path)[0] is None


def test_checkpoints_of_the_format_before_are_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "round_000001", {"a": torch.ones(9)}, {"round": 1})
    meta = path / "checkpoint.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 2}))
    (path / "checkpoint.sha256").unlink()
    assert torch.equal(load_checkpoint(path)[0]["a"], torch.ones(9))


def test_what_is_damaged_twice_is_kept_twice(tmp_path: Path) -> None:
    for _ in range(3):
        (save_checkpoint(tmp_path / "round_000002", {"a": torch.ones(9)}, {}) / "tensors.safetensors").unlink()
        keep_until(tmp_path, 1)
    names = {"damaged_round_000002", "damaged_round_000002-2", "damaged_round_000002-3"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_run_is_never_written_over_another(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, "mine", "fedlgd", 0)
    assert first.path == tmp_path / "mine"
    with pytest.raises(ConfigError, match=r"tracking\.name = 'mine'"):
        RunFolder.create(tmp_path, "mine", "fedlgd", 0)
    unnamed = {RunFolder.create(tmp_path, None, "my.module:Method", 3).path for _ in range(3)}
    assert len(unnamed) == 3
    assert all(path.name.startswith("Method-seed3-") for path in unnamed)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"tracking\.folder"):
        RunFolder.create(tmp_path / "file", None, "fedlgd", 0)


def test_opening_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a run folder"):
        RunFolder.open(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    """The writer is killed while the new content is on its way to the disk."""
    path = tmp_path / "file"
    write_atomic(path, "old")
    program = f"""
import os, signal
from pathlib import Path
from fedlab.storage import runfolder
real = os.fsync
def die(descriptor):
    real(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
runfolder.os.fsync = die
runfolder.write_atomic(Path({str(path)!r}), "new" * 100000)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_a_failed_write_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []
