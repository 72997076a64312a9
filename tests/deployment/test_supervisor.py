"""Programs are kept running, and nothing of them is left when they are to end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlab.deployment import processes, supervisor
from fedlab.deployment.private import private_folder
from fedlab.deployment.processes import Program
from fedlab.deployment.project import Folder, Site
from fedlab.errors import MachineError
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

# leaves a process behind that belongs to no group and no parent of ours, then waits to be ended
DETACHING = """
import os, signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
print("started", os.environ["FEDLAB_PROGRAM"], flush=True)
signal.pause()
"""
FAILING = "import sys; print('cannot work', flush=True); sys.exit(3)"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "made")
    private_folder(made.state)
    made.write(Site(name="x", form="processes", site="x", superlink="localhost:1"))
    yield made
    processes.end_all(made)


@pytest.fixture
def supervised(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Starts a supervisor of some programs, each a piece of Python; returns its process id."""
    started: list[multiprocessing.process.BaseProcess] = []

    def start(**codes: str) -> int:
        kept = [Program(name, (sys.executable, "-c", code), alone=True) for name, code in codes.items()]
        monkeypatch.setattr(processes, "programs", lambda folder: kept)
        process = multiprocessing.get_context("fork").Process(target=supervisor.supervise, args=(folder,))
        process.start()
        started.append(process)
        until(lambda: supervisor.running(folder))
        assert process.pid is not None
        return process.pid

    yield start
    for process in started:
        if process.is_alive():
            process.terminate()
        process.join()


def pid_of(folder: Folder, name: str) -> int | None:
    found = supervisor.standings(folder).get(name)
    return None if found is None else found.pid


def test_a_program_that_dies_is_started_again_and_its_rest_is_ended(
    folder: Folder, supervised: Callable[..., int]
) -> None:
    supervised(one=DETACHING)
    until(lambda: len(processes.marked(folder, "one")) == 2)
    first, before = pid_of(folder, "one"), set(processes.marked(folder, "one"))
    assert first in before
    os.kill(int(first or 0), signal.SIGKILL)
    until(lambda: pid_of(folder, "one") not in (None, first))
    until(lambda: len(processes.marked(folder, "one")) == 2)
    assert not before & set(processes.marked(folder, "one"))
    standing = supervisor.standings(folder)["one"]
    assert (standing.starts, standing.ended) == (2, "signal SIGKILL")
    until(lambda: Path(standing.log).read_text() == "started one\nstarted one\n")


def test_nothing_is_left_after_the_end(folder: Folder, supervised: Callable[..., int]) -> None:
    supervised(one=DETACHING, two=DETACHING)
    until(lambda: len(processes.marked(folder)) == 4)
    assert supervisor.stop(folder) == 4
    assert processes.marked(folder) == []
    assert supervisor.running(folder) is None
    assert supervisor.standings(folder) == {}
    assert supervisor.stop(folder) == 0


def test_what_a_killed_supervisor_has_left_is_ended_too(folder: Folder, supervised: Callable[..., int]) -> None:
    pid = supervised(one=DETACHING)
    until(lambda: len(processes.marked(folder)) == 2)
    os.kill(pid, signal.SIGKILL)
    until(lambda: supervisor.running(folder) is None)
    assert len(processes.marked(folder)) == 2
    assert supervisor.stop(folder) == 2
    assert processes.marked(folder) == []


def test_a_program_that_cannot_work_is_tried_again_after_growing_pauses(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    kept = supervisor._Kept(folder, Program("bad", (sys.executable, "-c", FAILING)))
    pauses = []
    for _ in range(7):
        kept.look()
        until(lambda: kept.look() or kept.standing.pid is None)
        assert kept.standing.ended == "exit code 3"
        began = clock[0]
        while kept.standing.pid is None:
            clock[0] += 0.5
            kept.look()
        pauses.append(clock[0] - began)
        kept.end()
        kept._process, kept.standing.pid, kept._due = None, None, clock[0]
    assert pauses == [1, 2, 4, 8, 15, 15, 15]


def test_a_second_supervisor_does_not_start(folder: Folder, supervised: Callable[..., int]) -> None:
    supervised(one=DETACHING)
    until(lambda: len(processes.marked(folder)) == 2)
    second = multiprocessing.get_context("fork").Process(target=supervisor.supervise, args=(folder,))
    second.start()
    second.join()
    assert second.exitcode == 1
    assert len(processes.marked(folder)) == 2


def test_only_processes_of_the_project_are_found(
    folder: Folder, tmp_path: Path, supervised: Callable[..., int]
) -> None:
    supervised(one=DETACHING)
    until(lambda: len(processes.marked(folder)) == 2)
    assert processes.marked(Folder(tmp_path / "mad")) == []
    assert processes.marked(Folder(tmp_path)) == []
    assert processes.marked(folder, "two") == []
    assert os.getpid() not in processes.marked(folder)


def test_ports() -> None:
    import socket

    port = processes.free_port()
    assert not processes.is_taken(port)
    with socket.socket() as held:
        held.bind(("127.0.0.1", port))
        held.listen()
        assert processes.is_taken(port)


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "_PROCESSES", tmp_path)
    with pytest.raises(MachineError, match="--containers"):
        processes.check_machine()
