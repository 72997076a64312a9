"""Programs in place of Flower's are Flower's own commands, with less to import and shorter pauses."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from fedlab.clients.resident.programs import CLIENTAPP, SUPERNODE, install
from fedlab.clients.resident.supernode import ACTIVE, LOOK, REPLY, with_short_pauses

ASKED = """
import sys
from fedlab.clients.resident.{program} import main

sys.argv = ["flwr", "--help"]
try:
    main()
except SystemExit as end:
    heavy = {{"uvicorn", "sqlalchemy", "torch", "flwr.supernode.cli.flower_supernode"}}
    found = sorted(heavy & set(sys.modules))
    print("code", end.code, "with", found)
"""


def asked(program: str, *then: str) -> str:
    code = "\n".join([ASKED.format(program=program), *then])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def test_a_messages_process_is_flowers_command_and_imports_no_web_server_and_no_database() -> None:
    said = asked("clientapp")
    assert "--runtime-api-address" in said
    assert said.endswith("code 0 with []\n")


def test_the_nodes_process_is_flowers_command_and_its_loop_pauses_for_a_short_time() -> None:
    said = asked("supernode", "import flwr.supernode.start_client_internal as loop", "print(loop.time.sleep)")
    assert "--superlink" in said
    assert "with_short_pauses.<locals>.sleep" in said


class Clock(ModuleType):
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        super().__init__("time")
        self.now, self.slept = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def test_pauses_are_short_for_a_while_after_a_message_and_then_those_of_flower() -> None:
    clock = Clock()
    paused = with_short_pauses(clock)
    paused.sleep(3)
    assert clock.slept == [3], "no message was there yet"
    paused.sleep(0.5)
    assert clock.slept.pop() == REPLY
    clock.slept.clear()
    while clock.slept[-1:] != [3]:
        paused.sleep(3)
    assert set(clock.slept[:-1]) == {LOOK}
    assert sum(clock.slept[:-1]) == pytest.approx(ACTIVE, abs=1)


def test_the_pauses_that_flower_makes_are_those_that_are_shortened() -> None:
    """Another version of Flower may pause elsewhere, or for other times, and nodes would be slow without a word."""
    loop = import_module("flwr.supernode.start_client_internal")
    text = Path(str(loop.__file__)).read_text(encoding="utf-8")
    assert {line.strip() for line in text.splitlines() if "sleep(" in line} == {"time.sleep(3)", "time.sleep(0.5)"}


@pytest.mark.skipif(os.name != "posix", reason="the programs are shell scripts")
@pytest.mark.parametrize(("program", "module"), [(CLIENTAPP, "clientapp"), (SUPERNODE, "supernode")])
def test_the_programs_pass_their_arguments_on(
    program: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "a folder" / "python"
    python.parent.mkdir()
    python.symlink_to("/bin/echo")
    monkeypatch.setattr(sys, "executable", str(python))
    install(tmp_path / "first")
    path = os.pathsep.join([str(tmp_path / "first"), os.environ["PATH"]])
    done = subprocess.run([program, "--token", "a b"], env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == f"-P -m fedlab.clients.resident.{module} --token a b\n"
