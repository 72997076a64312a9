"""`fedlab run --flower-app` as it is typed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flowerapp.apps import PROJECT
from tests.flowerapp.apps import write_app as write_app
from tests.forks import Forks

Cli, Write = Callable[..., Any], Callable[..., Path]
QUIET = ("--engine", "inline", "--quiet", "--set", "tracking.tensorboard=false", "--set", "tracking.report=false")


def test_an_app_is_run_shown_and_run_again(cli: Cli, write_app: Write) -> None:
    folder = write_app()
    done = cli("run", "--flower-app", folder, "--run-config", "num-server-rounds=1", "--name", "mine", *QUIET)
    assert done.exit_code == 0, done.output
    assert "Results after round 1" in done.stdout
    assert "client 3" in done.stdout
    assert "run folder: " in done.stdout
    shown = cli("show", "runs/mine").stdout
    assert f"Flower app numbers-app in {folder}, 4 clients, seed 0, 1 of 1 rounds" in shown
    assert "fedlab run --flower-app" in shown
    assert "flower.log" in shown
    again = cli("run", "runs/mine/config.yaml", "--name", "again", "--quiet")
    assert again.exit_code == 0, again.output
    assert (Path("runs/again/metrics.csv").read_text().replace("seconds", "")) != ""
    assert cli("show", "runs/again").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "METHOD|CONFIG: a method's name, a YAML file, or --flower-app FOLDER is required"),
        (("fedlgd", "--flower-app", "APP"), "METHOD|CONFIG = 'fedlgd'\n  expected: nothing beside --flower-app"),
        (
            ("--flower-app", "nowhere"),
            "there is no such folder",
        ),
        (("--flower-app", "APP", "--rounds", "3"), "--run-config 'num-server-rounds=3'"),
        (("--flower-app", "APP", "--until", "3"), "--until = 3"),
        (("--flower-app", "APP", "--run-config", "x=1"), "--run-config x = 1"),
        (("--flower-app", "APP", "--set", "model.width=8"), "model"),
        (("fedlgd", "--clients", "3"), "--clients = 3\n  expected: given together with --flower-app only"),
        (("fedlgd", "--run-config", "x=1"), "given together with --flower-app only"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], message: str, cli: Cli, write_app: Write) -> None:
    folder = str(write_app())
    done = cli("run", *(folder if word == "APP" else word for word in words), *QUIET)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert not Path("runs").exists()


def test_a_client_that_fails_is_exit_code_1_with_its_traceback(cli: Cli, write_app: Write) -> None:
    done = cli("run", "--flower-app", write_app(), "--run-config", 'misbehave="raise"', *QUIET)
    assert done.exit_code == 1
    assert "client 2 failed in round 1, phase train" in done.stderr
    assert "client 2 has no data" in done.stderr
    assert "run folder: " in done.stderr


def test_an_app_that_cannot_be_imported_is_exit_code_2_before_a_run_exists(cli: Cli, write_app: Write) -> None:
    done = cli("run", "--flower-app", write_app(task="import no_such_package"), *QUIET)
    assert done.exit_code == 2, done.output
    assert "its code imports no_such_package" in done.stderr
    assert not Path("runs").exists()


def test_commands_for_runs_of_methods_say_that_this_is_none(cli: Cli, write_app: Write) -> None:
    assert cli("run", "--flower-app", write_app(), "--name", "app", *QUIET).exit_code == 0
    done = cli("resume", "runs/app")
    assert done.exit_code == 2, done.output
    assert "of a Flower app" in done.stderr


@pytest.mark.programs
def test_ctrl_c_ends_a_run_with_code_130_and_a_record(write_app: Write, forks: Forks) -> None:
    folder = write_app(project=PROJECT.replace('misbehave = ""', 'misbehave = "hang"'))
    program = Path("program.py")
    program.write_text("from fedlab.cli.main import main\nmain()\n")
    running = forks.start([program.absolute(), "run", "--flower-app", folder, "--name", "mine", *QUIET], cwd=Path.cwd())
    running.until(Path("began").exists)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait() == 130
    events = Path("runs/mine/events.jsonl").read_text().splitlines()
    assert '"status": "interrupted"' in events[-1]
