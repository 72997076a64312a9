"""The installed command, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest

FEDLAB = [sys.executable, "-c", "from fedlab.cli.main import main; main()"]


def fedlab(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", **variables}
    return subprocess.run([*FEDLAB, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_version(tmp_path: Path) -> None:
    assert fedlab("--version", cwd=tmp_path).stdout == f"fedlab {version('fedlab-sim')}\n"


def test_help_of_every_command_loads_no_large_library(tmp_path: Path) -> None:
    code = (
        "import sys, typer.testing\n"
        "from fedlab.cli.main import app\n"
        "for words in (), ('run',), ('list',), ('show',), ('config', 'check'), ('doctor',), ('reproduce',):\n"
        "    assert typer.testing.CliRunner().invoke(app, [*words, '--help']).exit_code == 0, words\n"
        "print([name for name in ('torch', 'flwr', 'ray', 'numpy', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_shell_completes_commands_and_methods(tmp_path: Path) -> None:
    def complete(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_FEDLAB_COMPLETE": "complete_bash"}
        return fedlab(cwd=tmp_path, **words).stdout.split()

    assert complete("fedlab repr") == ["reproduce"]
    assert complete("fedlab run fedl") == ["fedlgd"]


def test_an_input_error_is_a_message_and_exit_code_2(tmp_path: Path) -> None:
    done = fedlab("run", "fedlgdd", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: METHOD or CONFIG = 'fedlgdd'")
    debug = fedlab("run", "fedlgdd", cwd=tmp_path, FEDLAB_DEBUG="1")
    assert "Traceback (most recent call last)" in debug.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_run_with_130_and_leaves_its_report(tiny: Path, tmp_path: Path) -> None:
    command = [*FEDLAB, "run", str(tiny), "--rounds", "1000000", "--name", "long"]
    hears = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a job in the background ignores Ctrl-C, and so would its children
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hears)
    events = tmp_path / "runs" / "long" / "events.jsonl"
    try:
        while not (events.is_file() and '"event": "round"' in events.read_text()):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate()
    finally:
        running.kill()
    assert running.returncode == 130
    assert "Traceback" not in errors
    assert str(events.parent) in errors.splitlines()[-1]
    assert '"status": "interrupted"' in events.read_text()
    assert (events.parent / "report.html").is_file()
