"""A node keeps the states of the runs that it has used last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedlab.clients.kept_runs import forget_old_runs


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs; the first one has saved a state long after the others had begun."""
    for number, name in enumerate(["first", "second", "third", "fourth"]):
        state = tmp_path / name / "0000" / "0000000" / "000001.state"
        state.parent.mkdir(parents=True)
        state.touch()
        for path in (state, *list(state.parents)[:3]):
            os.utime(path, (number, number))
    os.utime(tmp_path / "first" / "0000" / "0000000" / "000001.state", (9, 9))
    return tmp_path


@pytest.mark.parametrize(
    ("current", "kept", "stay"),
    [
        ("fifth", 5, {"first", "second", "third", "fourth"}),
        ("fifth", 3, {"first", "fourth"}),
        ("fifth", 1, set()),
        ("second", 1, {"second"}),
        ("second", 2, {"second", "first"}),
    ],
)
def test_the_runs_that_were_used_last_stay_and_so_does_the_present_one(
    folder: Path, current: str, kept: int, stay: set[str]
) -> None:
    before = left(folder)
    assert set(forget_old_runs(folder, current, kept)) == before - stay
    assert left(folder) == stay


def test_what_cannot_be_removed_is_told_and_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(f"{path} is another user's")

    monkeypatch.setattr("fedlab.clients.kept_runs.shutil.rmtree", refused)
    assert forget_old_runs(folder, "first", 3) == []
    assert left(folder) == {"first", "second", "third", "fourth"}
    assert "the states of run second cannot be removed" in caplog.text
