"""The process of a message starts with Flower's own command and without what that does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlab.clients.resident.start import PROGRAM, install

ASKED = """
import sys
from fedlab.clients.resident.start import main

sys.argv = ["flwr-clientapp", "--help"]
try:
    main()
except SystemExit as end:
    heavy = {"uvicorn", "sqlalchemy", "torch", "flwr.supernode.cli.flower_supernode"}
    found = sorted(heavy & set(sys.modules))
    print("code", end.code, "with", found)
"""


def test_it_is_flowers_command_and_imports_no_web_server_and_no_database() -> None:
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=False)
    assert "--runtime-api-address" in done.stdout, done.stderr
    assert done.stdout.endswith("code 0 with []\n")


@pytest.mark.skipif(os.name != "posix", reason="the program is a shell script")
def test_the_program_passes_its_arguments_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "a folder" / "python"
    python.parent.mkdir()
    python.symlink_to("/bin/echo")
    monkeypatch.setattr(sys, "executable", str(python))
    install(tmp_path / "first")
    command = [PROGRAM, "--token", "a b"]
    path = os.pathsep.join([str(tmp_path / "first"), os.environ["PATH"]])
    done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == "-P -m fedlab.clients.resident.start --token a b\n"
