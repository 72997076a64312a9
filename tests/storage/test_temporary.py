"""What processes that were killed have left behind is removed, and nothing else."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlab.storage.locks import lock_now
from fedlab.storage.temporary import sweep_temporary, sweep_unfinished, temporary_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sweep_temporary.cache_clear()
    yield tmp_path
    sweep_temporary.cache_clear()


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(temporary: Path) -> None:
    names = ("preflight-dead", "tuning-dead", "preflight-young", "preflight-living", "doctor-old", "submit-1", "else-x")
    folders = {name: temporary / f"fedlab-{name}" for name in names}
    for folder in folders.values():
        folder.mkdir()
        (folder / "0000").mkdir()
    for name in ("preflight-dead", "tuning-dead", "preflight-living", "else-x"):
        (folders[name] / ".lock").touch()
    for name, seconds in {**dict.fromkeys(names, 120.0), "preflight-young": 5, "doctor-old": 100_000}.items():
        aged(folders[name], seconds)
    (temporary / "fedlab-preflight-file").write_text("no folder")
    aged(temporary / "fedlab-preflight-file", 120)
    with (folders["preflight-living"] / ".lock").open("a") as held:
        assert lock_now(held)
        with temporary_folder("preflight") as own:
            assert own.parent == temporary
            left = {path.name for path in temporary.iterdir()} - {own.name, "fedlab-preflight-file"}
    assert left == {f"fedlab-{name}" for name in ("preflight-young", "preflight-living", "submit-1", "else-x")}
    assert not own.exists()


def test_what_was_being_written_is_removed_from_a_run_folder(tmp_path: Path) -> None:
    half = ["a/.000001.state.k3jd8_xz", ".events.jsonl.0123abcd", "checkpoints/.tensors.safetensors.ffffffff"]
    whole = [".config.yaml", ".lock", "a/000001.state", ".notes.metadata", "a/.x.0123abcd"]
    for name in (*half, *whole):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert sweep_unfinished(tmp_path, older=60) == 0
    assert sweep_unfinished(tmp_path) == len(half)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(whole)
