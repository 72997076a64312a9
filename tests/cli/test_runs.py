from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import fedlab
from fedlab.errors import CheckpointError

Cli = Callable[..., Any]


@pytest.fixture
def finished(cli: Cli, tiny: Path, tmp_path: Path) -> Path:
    done = cli("run", tiny, "--name", "run", "--set", "tracking.checkpoint_every=1")
    assert done.exit_code == 0, done.output
    return tmp_path / "runs" / "run"


def damage(checkpoint: Path) -> None:
    tensors = checkpoint / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x7f")


@pytest.mark.usefixtures("reports")
def test_show_prints_results_command_and_files(cli: Cli, finished: Path) -> None:
    done = cli("show", finished)
    assert done.exit_code == 0
    for text in ("2 of 2 rounds", "command: fedlab run", "unweighted mean", "round_000002", "report.html"):
        assert text in done.stdout


def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(cli: Cli, finished: Path) -> None:
    damage(finished / "checkpoints" / "round_000002")
    done = cli("show", finished)
    assert done.exit_code == 0
    assert "broken checkpoint" in done.stdout
    assert "the file is incomplete or was changed" in done.stdout
    assert fedlab.load(finished).checkpoint.name == "round_000001"


def test_a_run_without_a_usable_checkpoint_is_shown_but_gives_no_model(cli: Cli, finished: Path) -> None:
    for checkpoint in (finished / "checkpoints").iterdir():
        damage(checkpoint)
    done = cli("show", finished)
    assert done.exit_code == 0
    assert "none can be used" in done.stdout
    with pytest.raises(CheckpointError, match="a complete checkpoint"):
        _ = fedlab.load(finished).model


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_folder_that_is_no_run_is_refused(cli: Cli, tmp_path: Path, command: str) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        done = cli(command, path)
        assert done.exit_code == 2
        assert "a run folder" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_whose_configuration_was_spoilt_is_refused(cli: Cli, finished: Path) -> None:
    (finished / "config.yaml").write_text("seed: [")
    done = cli("show", finished)
    assert done.exit_code == 2
    assert "config.yaml" in done.stderr


def test_a_run_that_was_killed_early_is_shown(cli: Cli, finished: Path) -> None:
    (finished / "events.jsonl").unlink()
    assert "0 of 2 rounds" in cli("show", finished).stdout


@pytest.mark.usefixtures("reports")
def test_report_writes_the_page_again_and_opens_it_on_request(
    cli: Cli, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", lambda address: opened.append(address) or 0)
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("typer opens it"))
    (finished / "report.html").unlink()
    assert cli("report", finished).exit_code == 0
    assert (finished / "report.html").is_file()
    assert opened == []
    assert cli("report", finished, "--open").exit_code == 0
    assert opened == [(finished / "report.html").as_uri()]
