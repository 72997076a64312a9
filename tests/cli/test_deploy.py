"""`fedlab deploy` on the command line: what is refused, and what is said, without starting anything."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from fedlab.cli.main import app
from fedlab.config import read_yaml
from fedlab.config.yamltree import dump_yaml
from fedlab.deployment import operate, processes, runs, supervisor
from fedlab.deployment.flower import Connection, DeploymentError, Status
from fedlab.deployment.project import Folder
from fedlab.tracking.stream import StreamSink
from tests.cli.conftest import TINY
from tests.server.remote import Clock

Cli = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
RUN = 71


@pytest.fixture
def folder(cli: Cli, tmp_path: Path) -> Folder:
    """A demonstration in the folder `deployment` of the current folder."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("RUNS", "runs").replace("CACHE", "cache"))
    done = cli("deploy", "init", "tiny.yaml", "--processes", "--simulate-partition", "--nodes", 2)
    assert done.exit_code == 0, done.output
    assert "next: fedlab deploy up --folder" in done.stdout
    return Folder(tmp_path / "deployment")


class Flower:
    """Stands for a SuperLink: answers as Flower's command line does."""

    def __init__(self) -> None:
        self.up = True
        self.status = Status("finished:completed", "")
        self.logs: list[list[str]] = []
        self.calls: list[tuple[str, ...]] = []
        self.submitted: list[dict[str, Any]] = []

    def call(self, *arguments: str, home: Path | None = None) -> dict[str, Any]:
        self.calls.append(arguments)
        match arguments:
            case ("ls", _, "--run-id", _):
                return {"runs": [{"status": self.status.status, "status-details": self.status.details}]}
            case ("supernode", "list", *_):
                return {"nodes": []}
            case ("ls", *_):
                return {"runs": []}
        return {}

    def submit(self, config: Any, superlink: str, **more: Any) -> int:
        self.submitted.append({"name": config.tracking.name, "rounds": config.federation.rounds, **more})
        return RUN + len(self.submitted) - 1

    @contextmanager
    def log(self, run: int) -> Iterator[Iterator[str]]:
        yield iter(self.logs.pop(0) if self.logs else [])


@pytest.fixture
def flower(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Flower:
    made = Flower()
    monkeypatch.setattr("fedlab.deployment.flower.call", made.call)
    monkeypatch.setattr(Connection, "log", made.log)
    monkeypatch.setattr(Connection, "answers", lambda connection: made.up)
    monkeypatch.setattr(runs, "submit", made.submit)
    monkeypatch.setattr(runs, "is_healthy", lambda *_: True)
    monkeypatch.setattr(operate, "is_healthy", lambda *_: True)
    monkeypatch.setattr("fedlab.deployment.runs.time.sleep", lambda seconds: None)
    return made


def printed(*events: dict[str, Any]) -> list[str]:
    """What a server prints of some events."""
    lines: list[str] = []

    class Out:
        def write(self, text: str) -> int:
            lines.append(text)
            return len(text)

    sink = StreamSink(Out())  # type: ignore[arg-type]  # it has all that is used
    for event in events:
        sink.write({"time": 0.0, **event})
    return lines


START = {
    "event": "run_start", "folder": "/runs/x", "method": "supervised", "strategy": "fedavg", "model": "logistic",
    "seed": 0, "rounds": 2, "engine": "deployment", "workers": 0, "command": None, "resumed": None,
}  # fmt: skip
TRAIN = {"event": "phase_start", "round": 1, "phase": "train", "total": 2}
END = {"event": "run_end", "status": "completed", "seconds": 3.0, "error": ""}


def leave_run(folder: Folder, name: str) -> None:
    """What a server leaves of a run."""
    path = folder.runs / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(TINY.replace("RUNS", "runs").replace("CACHE", "cache"))
    (path / "events.jsonl").write_text("".join(json.dumps({"time": 0.0, **event}) + "\n" for event in (START, END)))


def test_without_a_folder_every_command_says_how_to_make_one(cli: Cli) -> None:
    for words in (["up"], ["down"], ["status"], ["run", "x.yaml"], ["resume", "x"], ["stop", "x"], ["renew"]):
        done = cli("deploy", *words)
        assert done.exit_code == 2, words
        assert "fedlab deploy init" in done.stderr


def test_down_and_status_without_up(cli: Cli, folder: Folder) -> None:
    done = cli("deploy", "down")
    assert (done.exit_code, done.stdout) == (0, "nothing was running\n")
    done = cli("deploy", "status")
    assert done.exit_code == 1
    assert "SuperLink: down: start it with `fedlab deploy up`" in done.stdout
    assert "certificate: valid until" in done.stdout


def test_a_run_without_up_is_not_submitted(cli: Cli, folder: Folder) -> None:
    # somebody else's federation may listen on the usual port
    folder.file.write_text(dump_yaml({**read_yaml(folder.file), "control_port": processes.free_ports(1)[0]}))
    done = cli("deploy", "run", "tiny.yaml")
    assert done.exit_code == 1
    assert "start it with `fedlab deploy up`" in done.stderr
    assert not folder.submitted.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run"], "either a configuration to run, or --follow RUN"),
        (["run", "tiny.yaml", "--follow", "x"], "either a configuration to run, or --follow RUN"),
        (["run", "--follow", "x"], "a run that was submitted from this folder"),
        (["run", "tiny.yaml", "--set", "federation.round=3"], "did you mean 'rounds'"),
        (["run", "none.yaml"], "none.yaml"),
        (["stop", "x"], "submit one with `fedlab deploy run CONFIG`"),
        (["resume", "x"], "a run that was submitted from this folder"),
        (["remove", "node-7"], "did you mean 'node-1' or 'node-0'?"),
        (["renew", "--host", "a b"], "the name or IP address of a host"),
        (["up", "--image", "x:1"], "a project in containers"),
        (["node", "tiny.yaml"], "a site's file as `fedlab deploy init` writes it"),
        (["node", "none.fedlab"], "none.fedlab"),
        (["init", "tiny.yaml", "--processes", "--simulate-partition", "--nodes", "2", "--port", "99"], "8443"),
    ],
)
def test_wrong_input_is_refused(cli: Cli, flower: Flower, words: list[str], told: str) -> None:
    done = cli("deploy", *words)
    assert done.exit_code == 2, done.output
    assert told in " ".join(done.stderr.split())
    assert flower.submitted == []


def test_a_port_that_is_taken_is_told_before_anything_starts(
    cli: Cli, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlab.deployment.processes.is_taken", lambda port: port == 8444)
    monkeypatch.setattr(supervisor, "start", lambda folder: pytest.fail("it was started"))
    done = cli("deploy", "up")
    assert done.exit_code == 2
    assert "control_port = 8444" in done.stderr


def test_a_key_that_others_can_read_is_told_before_anything_starts(cli: Cli, folder: Folder) -> None:
    folder.key("node-1").chmod(0o644)
    done = cli("deploy", "up")
    assert done.exit_code == 2
    assert f"chmod 600 {folder.key('node-1')}" in done.stderr.replace("\n", "")


def test_an_expired_certificate_is_told(cli: Cli, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.deployment.certificates.SERVER_DAYS", 0)
    assert cli("deploy", "renew").exit_code == 0
    done = cli("deploy", "up")
    assert done.exit_code == 2
    assert "fedlab deploy renew" in done.stderr
    monkeypatch.setattr("fedlab.deployment.certificates.SERVER_DAYS", 20)
    cli("deploy", "renew")
    assert "warning: the server's certificate expires" in cli("deploy", "status").stderr


def test_a_run_is_submitted_followed_and_shown(cli: Cli, folder: Folder, flower: Flower) -> None:
    lines = printed(START, TRAIN, END)
    flower.logs = [["INFO : Flower\n", *lines[:2]], ["noise\n", *lines]]  # the connection breaks once
    flower.status = Status("finished:completed", "")
    leave_run(folder, "mine")
    done = cli("deploy", "run", "tiny.yaml", "--set", "tracking.name=mine")
    assert done.exit_code == 2  # the name is taken
    (folder.runs / "mine").rename(folder.runs / "other")
    done = cli("deploy", "run", "tiny.yaml", "--plain", "--set", "tracking.name=mine", "--clients", 1)
    assert done.exit_code == 0, done.output
    (sent,) = flower.submitted
    assert (sent["name"], sent["clients"], sent["simulate_partition"], sent["resume"]) == ("mine", 1, True, "")
    assert (folder.submitted / f"{RUN}.json").is_file()
    (folder.runs / "other").rename(folder.runs / "mine")
    flower.logs = [lines[:2]]
    done = cli("deploy", "run", "--follow", "mine", "--plain")
    assert done.exit_code == 0, done.output
    assert "supervised · fedavg · logistic · seed 0 · 2 rounds" in done.stderr
    assert done.stderr.count("round 1/2  training 2 clients") == 1
    assert "completed after" in done.stdout
    assert "mine" in done.stdout.splitlines()[-1]


def test_lost_events_are_counted(cli: Cli, folder: Folder, flower: Flower) -> None:
    cli("deploy", "run", "tiny.yaml", "--set", "tracking.name=mine", "--detach")
    lines = printed(START, TRAIN, TRAIN, END)
    flower.logs = [[lines[0], lines[3]]]
    assert "2 events were not shown here" in cli("deploy", "run", "--follow", "mine").stderr


def test_a_failed_run_ends_with_its_error_and_exit_code(cli: Cli, folder: Folder, flower: Flower) -> None:
    flower.status = Status("finished:failed", "client 1 failed in round 1\nTraceback of the client")
    done = cli("deploy", "run", "tiny.yaml")
    assert done.exit_code == 1
    assert "Traceback of the client" in done.stderr


def test_a_detached_run_says_how_to_go_on(cli: Cli, folder: Folder, flower: Flower) -> None:
    done = cli("deploy", "run", "tiny.yaml", "--set", "tracking.name=mine", "--detach")
    assert done.exit_code == 0
    assert "fedlab deploy run --follow mine" in done.stdout
    assert "fedlab deploy stop mine" in done.stdout


def test_ctrl_c_says_that_the_run_goes_on(
    cli: Cli, folder: Folder, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "follow", interrupted)
    done = cli("deploy", "run", "tiny.yaml", "--set", "tracking.name=mine")
    assert done.exit_code == 130
    for told in ("the run continues", "fedlab deploy run --follow mine", "fedlab deploy stop mine"):
        assert told in done.stderr


def test_a_run_that_is_over_is_resumed_with_its_token(cli: Cli, folder: Folder, flower: Flower) -> None:
    cli("deploy", "run", "tiny.yaml", "--set", "tracking.name=mine", "--detach")
    flower.status = Status("running", "")
    done = cli("deploy", "resume", "mine")
    assert done.exit_code == 2
    assert "a run that is over; it is running" in done.stderr
    flower.status = Status("finished:stopped", "")
    done = cli("deploy", "resume", folder.runs / "mine", "--rounds", 9, "--detach")
    assert done.exit_code == 0, done.output
    before, after = flower.submitted
    assert after == {**before, "rounds": 9, "resume": "mine"}
    assert after["token"]
    # the newest submission of a run is the one that is meant
    cli("deploy", "stop", "mine")
    assert ("stop", str(RUN + 1), "fedlab") in flower.calls
    cli("deploy", "stop", RUN)
    assert ("stop", str(RUN), "fedlab") in flower.calls


def test_every_run_has_a_token_and_a_name_of_its_own(cli: Cli, folder: Folder, flower: Flower) -> None:
    for _ in range(3):
        assert cli("deploy", "run", "tiny.yaml", "--detach").exit_code == 0
    assert len({sent["token"] for sent in flower.submitted}) == 3
    assert len({sent["name"] for sent in flower.submitted}) == 3


def test_a_superlink_that_is_restarted_is_waited_for(
    folder: Folder, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = [False, False, True, True, True, True]
    answers = [DeploymentError("starting"), Status("running", ""), Status("finished:completed", "")]

    def status(connection: Connection, run: int) -> Status:
        answer = answers.pop(0)
        if isinstance(answer, DeploymentError):
            raise answer
        return answer

    monkeypatch.setattr(Connection, "status", status)
    monkeypatch.setattr(Connection, "answers", lambda connection: health.pop(0))
    submitted, told = runs.Submitted(RUN, "mine", "t", {}), list[str]()
    assert runs.follow(folder, submitted, None, told.append) == (Status("finished:completed", ""), 0)
    assert [line.partition(";")[0] for line in told] == ["the SuperLink does not answer", "the SuperLink answers again"]
    monkeypatch.setattr(Connection, "answers", lambda connection: True)
    answers = [DeploymentError("no such run")] * 99
    with pytest.raises(DeploymentError, match="no such run"):
        runs.follow(folder, replace(submitted), None, told.append)


def test_a_superlink_that_does_not_come_back_is_told_and_given_up(
    cli: Cli, folder: Folder, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("deploy", "run", "tiny.yaml", "--set", "tracking.name=mine", "--detach")
    clock = Clock()
    monkeypatch.setattr("fedlab.deployment.flower.time", clock)
    flower.up = False
    done = cli("deploy", "run", "--follow", "mine")
    assert done.exit_code == 1
    assert "the SuperLink does not answer; it is waited for, for 10 minutes" in done.stderr
    for told in ("deploy up", "deploy run --follow mine", "deploy resume mine"):
        assert f"fedlab {told}`" in done.stderr
    assert 600 < clock.now < 610


def test_commands_of_the_documentation_exist() -> None:
    """Commands that start servers are not run by the tests of pages; their words and options are checked here."""
    pages = [ROOT / "docs" / "deployment.md", ROOT / "docker" / "README.md"]
    lines = [line.strip() for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    commands = [line for line in lines if line.startswith("fedlab deploy ")]
    assert len(commands) > 20
    for line in commands:
        words = shlex.split(re.sub(r" +#.*| > .*", "", line))
        group: click.Command = typer.main.get_command(app)
        for name in words[1:3]:
            assert isinstance(group, click.Group)
            group = group.commands[name]
        group.make_context(line, words[3:])
