"""The installed command, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.forks import Forks

pytestmark = pytest.mark.programs

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


def test_an_input_error_is_a_message_and_exit_code_2(tmp_path: Path, forks: Forks) -> None:
    program = tmp_path / "program.py"
    program.write_text(FEDLAB[-1])
    done, debug = (
        forks.run([program, "run", "fedlgdd"], cwd=tmp_path, env={**os.environ, **variables})
        for variables in ({"COLUMNS": "120"}, {"FEDLAB_DEBUG": "1"})
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: METHOD or CONFIG = 'fedlgdd'")
    assert "Traceback (most recent call last)" in debug.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_run_with_130_and_leaves_its_report(tiny: Path, tmp_path: Path, forks: Forks) -> None:
    program, told = tmp_path / "program.py", tmp_path / "told"
    program.write_text(FEDLAB[-1])
    events = tmp_path / "runs" / "long" / "events.jsonl"
    with told.open("w") as err:
        running = forks.start([program, "run", tiny, "--rounds", "10000", "--name", "long"], cwd=tmp_path, err=err)
        running.until(lambda: events.is_file() and '"event": "round"' in events.read_text())
        os.kill(running.pid, signal.SIGINT)
        assert running.wait() == 130
    errors = told.read_text()
    assert "Traceback" not in errors
    assert str(events.parent) in errors.splitlines()[-1]
    assert '"status": "interrupted"' in events.read_text()
    assert (events.parent / "report.html").is_file()
