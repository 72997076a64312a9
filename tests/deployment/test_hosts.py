"""`fedlab cluster` against machines that are played by a program called ssh."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest
import typer.testing

from fedlab.cli.failures import FAILED, INPUT
from fedlab.cli.main import app
from fedlab.deployment.hosts import Hosts
from fedlab.engine import host
from fedlab.engine.members import versions
from fedlab.errors import MachineError

# writes down what it is called with, and answers as the machine's file says: command → [exit code, stdout, stderr]
SSH = """#!{python}
import json, sys
from pathlib import Path

*options, machine, command = sys.argv[1:]
verb = command.split("fedlab.engine.host ")[1]
with open({log!r}, "a") as log:
    log.write(json.dumps([options, machine, command]) + "\\n")
code, out, err = json.loads(Path({folder!r}, machine).read_text()).get(verb.split()[0], [0, "", ""])
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
Machines = Callable[..., None]


def about(**changes: Any) -> list[Any]:
    told = {"versions": versions(), "nodes": 0, "address": "10.0.0.1", **changes}
    return [0, f"Welcome!\n{json.dumps(told)}\n", ""]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Sets what machines answer."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH.format(python=sys.executable, log=str(tmp_path / "log"), folder=str(tmp_path)))
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")

    def answer(**answers: dict[str, list[Any]]) -> None:
        for name, said in answers.items():
            (tmp_path / name).write_text(json.dumps({"about": about(), **said}))

    answer(one={}, two={}, three={})
    return answer


def called(folder: Path) -> list[tuple[str, str]]:
    """Machine and command of every call, the first ones in any order, because machines are asked at once."""
    log = folder / "log"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    assert all(options[0] == "-n" and "BatchMode=yes" in options for options, _, _ in lines)
    return [(machine, command.split("fedlab.engine.host ")[1]) for _, machine, command in lines]


def cli(*words: str) -> click.testing.Result:
    return typer.testing.CliRunner().invoke(app, ["cluster", *words])


def test_the_first_machine_is_the_head_that_the_others_join(machines: Machines, tmp_path: Path) -> None:
    assert Hosts(["one", "two", "three"], "/opt/py").up(port=7000, cpus=4) == "10.0.0.1:7000"
    calls = called(tmp_path)
    assert sorted(calls[:3]) == [("one", "about"), ("three", "about"), ("two", "about")]
    assert calls[3] == ("one", "start --head --port 7000 --num-cpus 4")
    assert sorted(calls[4:]) == [(name, "start --address 10.0.0.1:7000 --num-cpus 4") for name in ("three", "two")]
    assert "/opt/py -m fedlab.engine.host about" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (about(versions={**versions(), "torch": "1.0"}), r"two = 'torch 1.0 instead of .*\n.*versions of this machine"),
        (about(versions={}), "Python missing instead of"),
        (about(nodes=1), "does not run yet\n.*fedlab cluster down two"),
        ([255, "", "Permission denied (publickey)."], "Permission denied.*\n.*without a password"),
        ([1, "", "No module named 'fedlab'"], "No module named 'fedlab'.*\n.*with FedLab in the environment"),
    ],
)
def test_one_unsuitable_machine_and_none_is_started(
    machines: Machines, tmp_path: Path, answer: list[Any], problem: str
) -> None:
    machines(two={"about": answer})
    with pytest.raises(MachineError, match=problem):
        Hosts(["one", "two"]).up()
    assert {command for _, command in called(tmp_path)} == {"about"}


def test_a_machine_that_fails_later_leaves_none_running(machines: Machines, tmp_path: Path) -> None:
    machines(two={"start": [1, "", "cannot connect to GCS"]})
    done = cli("up", "one", "two")
    assert done.exit_code == FAILED
    assert "does not start on two" in done.stderr
    assert "cannot connect to GCS" in done.stderr
    assert sorted(called(tmp_path)[-2:]) == [("one", "stop"), ("two", "stop")]


def test_up_says_how_the_cluster_is_used(machines: Machines) -> None:
    done = cli("up", "one", "two")
    assert done.exit_code == 0, done.output
    assert "cluster of 2 machines at 10.0.0.1:6379" in done.stdout
    assert "fedlab run CONFIG --engine ray --address 10.0.0.1:6379" in done.stdout


def test_down_stops_all_that_can_be_reached_and_names_the_others(machines: Machines, tmp_path: Path) -> None:
    assert cli("down", "one", "two").exit_code == 0
    machines(one={"stop": [255, "", "no route to host"]})
    done = cli("down", "one", "two")
    assert done.exit_code == FAILED
    assert "one: no route to host" in done.stderr
    assert called(tmp_path).count(("two", "stop")) == 2


def test_without_ssh_there_is_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cli("up", "one")
    assert done.exit_code == INPUT
    assert "install an ssh client" in done.stderr


def test_a_machine_tells_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert host.main(["about"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"] == versions()
    assert all(told["versions"].values())
    assert told["nodes"] >= 0
    assert told["address"]


def test_a_machine_starts_ray_without_reports_of_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    started = type("Started", (), {"wait": lambda self: 3})
    monkeypatch.setattr("subprocess.Popen", lambda command: commands.append(command) or started())
    assert host.main(["start", "--head", "--port", "7000"]) == 3
    assert host.main(["start", "--address", "a:7000"]) == 3
    assert commands[0][3:] == [
        *("start", "--head", "--port", "7000", "--disable-usage-stats", "--include-dashboard", "false"),
    ]
    assert commands[1][3:] == ["start", "--address", "a:7000"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
