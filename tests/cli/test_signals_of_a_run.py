"""Signals to a run in a process of its own: exit code 130, an end and a report, however often they come."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import fedlab
from tests.forks import Forks

pytestmark = pytest.mark.drill

CONFIG = """
method: supervised
model: {name: logistic}
data:
  source: {name: shifted_digits, train_per_class: 2, test_size: 20}
  partition: [{name: iid, clients: 4}]
federation: {rounds: 100000}
engine: {name: inline}
tracking: {folder: runs, name: mine, console: plain, tensorboard: false}
"""


@pytest.mark.parametrize(
    "signals", [("SIGHUP",), ("SIGTERM",) * 3, ("SIGINT",) * 10, ("SIGHUP", "SIGTERM", "SIGINT") * 2]
)
def test_a_run_that_is_told_to_end(signals: tuple[str, ...], tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    program = tmp_path / "program.py"
    program.write_text("from fedlab.cli.main import main\nmain()\n")
    running = forks.start([program, "run", "mine.yaml"], cwd=tmp_path)
    events = tmp_path / "runs" / "mine" / "events.jsonl"
    running.until(lambda: events.exists() and '"round": 2, "rounds"' in events.read_text())
    for name in signals:
        if not running.lives():
            break
        os.kill(running.pid, getattr(signal, name))
        time.sleep(0.05)  # signals of one kind that come at once are one; the run must end well however many it sees
    assert running.wait() == 130
    run = fedlab.load(tmp_path / "runs" / "mine")
    assert run.history.end["status"] == "interrupted"
    assert run.folder.report.is_file()


def test_a_terminal_that_is_closed(tmp_path: Path, forks: Forks) -> None:
    """The run has its output on a terminal, which goes away as its signal comes."""
    (tmp_path / "mine.yaml").write_text(CONFIG)
    program = tmp_path / "program.py"
    program.write_text("from fedlab.cli.main import main\nmain()\n")
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        running = forks.start([program, "run", "mine.yaml"], cwd=tmp_path, out=terminal, err=terminal)
    events = tmp_path / "runs" / "mine" / "events.jsonl"
    running.until(lambda: events.exists() and '"round": 2, "rounds"' in events.read_text())
    os.close(ours)
    os.kill(running.pid, signal.SIGHUP)
    assert running.wait() == 130
    run = fedlab.load(tmp_path / "runs" / "mine")
    assert run.history.end["status"] == "interrupted"
    assert run.folder.report.is_file()
