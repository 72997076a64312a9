"""Damaged run folders: `show`, `report` and `resume` give the same result or say what to do, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing

import fedlab
from fedlab.cli.main import app
from fedlab.storage.checkpoint import load_checkpoint
from tests.experiment.damage import MORE, QUICK, Damage

ROUNDS = 4
CONFIG: dict[str, Any] = {
    "method": {
        "name": "fedlgd",
        "ipc_local": 1,
        "ipc_global": 1,
        "warmup_steps": 1,
        "dm_steps": 1,
        "gm_steps": 1,
        "spacing": 2,
        "updates": 2,
    },
    "model": {"name": "convnet", "width": 4, "depth": 1},
    "data": {
        "source": {"name": "shifted_digits", "train_per_class": 1, "test_size": 12},
        "partition": [{"name": "iid", "clients": 2}],
    },
    "federation": {"rounds": ROUNDS},
    "engine": {"name": "inline"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was stopped after round 3 of 4, and the same one that was not."""
    folder = tmp_path_factory.mktemp("damaged")
    tracking = {"folder": str(folder), "console": "quiet", "tensorboard": False, "checkpoint_every": 1}
    whole = fedlab.run({**CONFIG, "tracking": {**tracking, "name": "whole"}})
    begun = fedlab.run({**CONFIG, "tracking": {**tracking, "name": "begun"}}, until=3)
    return begun.path, whole.path


def told(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it printed; an exception that it does not explain is raised."""
    done = typer.testing.CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def tried(runs: tuple[Path, Path], place: Path, damage: Damage, goes_on: bool) -> None:
    begun, whole = runs
    run = shutil.copytree(begun, place)
    damage(run)
    for command in ("show", "report", "resume"):
        code, said = told([command, str(run)])
        assert code in (0, 2), said
        assert code == 0 or "to do:" in said, said
        assert command != "report" or (run / "report.html").is_file() or code
        if command == "resume":
            assert (code == 0) is goes_on, said
    if goes_on:
        ours, theirs = (load_checkpoint(path / "checkpoints" / f"round_{ROUNDS:06d}")[0] for path in (run, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


Runs = tuple[Path, Path]


@pytest.mark.parametrize("state", QUICK)
def test_a_damaged_run_goes_on_to_the_same_result_or_says_what_to_do(runs: Runs, tmp_path: Path, state: str) -> None:
    tried(runs, tmp_path / "run", *QUICK[state])


@pytest.mark.drill
@pytest.mark.parametrize("state", MORE)
def test_so_does_a_run_that_is_damaged_in_any_other_way(runs: Runs, tmp_path: Path, state: str) -> None:
    tried(runs, tmp_path / "run", *MORE[state])


def test_what_was_edited_is_named_with_the_way_back_and_the_way_on(runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    change: Callable[[Path], None] = QUICK["a learning rate was edited"][0]
    change(run)
    code, said = told(["resume", str(run)])
    assert code == 2
    assert "training.lr is 0.7 and was 0.01" in said
    assert f"cp {run}/.config.yaml {run}/config.yaml" in said
    assert f"fedlab run {run}/config.yaml" in said
    code, said = told(["show", str(run)])
    assert code == 0
    assert "warning: config.yaml was changed after the run: training.lr is 0.7" in said
    shutil.copy(run / ".config.yaml", run / "config.yaml")
    assert told(["resume", str(run)])[0] == 0


def test_rows_that_the_ledger_lacks_are_told(runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    lines = (run / "ledger.csv").read_text().splitlines(keepends=True)
    (run / "ledger.csv").write_text("".join(line for line in lines if not line.startswith("2,1,")) + "3,torn")
    (told,) = fedlab.resume(run).history.warnings
    assert told == "ledger.csv is damaged: its rows of round 2 do not add up to the bytes of the round"


def test_a_run_of_an_earlier_version_goes_on_without_any_of_the_new_hashes(runs: Runs, tmp_path: Path) -> None:
    """Neither a copy of the configuration, nor hashes of facts, nor the configuration among the facts."""
    import json

    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / ".config.yaml").unlink()
    for path in run.glob("checkpoints/round_*"):
        (path / "checkpoint.sha256").unlink()
        meta = json.loads((path / "checkpoint.json").read_text())
        del meta["configuration"]
        (path / "checkpoint.json").write_text(json.dumps({**meta, "format": 3}))
    resumed = fedlab.resume(run)
    assert resumed.history.start["resumed"] == 3
    assert resumed.history.warnings == []
    assert (run / ".config.yaml").is_file()
