"""Processes that make runs, with small programs in place of FedLab's own; `test_jobs.py` has the real ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fedlab
from fedlab.studies import side_by_side
from fedlab.studies.side_by_side import Told, Workers, jobs_that_fit
from tests.waiting import until

ANSWER = """
import json, sys
for line in sys.stdin:
    seed = json.loads(line)["config"]["seed"]
    print(json.dumps({"kind": "announce", "text": f"at {seed}"}), flush=True)
    kind = "failed" if seed == 3 else "done"
    print(json.dumps({"kind": kind, "text": f"end of {seed}"}), flush=True)
"""
DIE = "import sys; sys.stdin.readline(); sys.stderr.write('why it died'); raise SystemExit(7)"
KILLED = "import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)"
WAIT = """
import signal, sys, time
def stop(*_):
    open(sys.argv[1], "w").write("recorded")
    raise SystemExit(130)
signal.signal(signal.SIGTERM, stop)
sys.stdin.readline()
open(sys.argv[1] + ".begun", "w").close()
time.sleep(600)
"""


def program(code: str, *arguments: object) -> Sequence[str]:
    return (sys.executable, "-I", "-S", "-c", code, *map(str, arguments))


def config(seed: int, **engine: Any) -> fedlab.Config:
    return fedlab.Config.model_validate(
        {"method": {"name": "supervised"}, "seed": seed, "engine": {"name": "inline", **engine},
         "data": {"source": {"name": "digits"}, "partition": [{"name": "domain"}]}}
    )  # fmt: skip


def test_runs_are_shared_out_and_tell_what_they_came_to(tmp_path: Path) -> None:
    heard: list[Told] = []
    waiting = list(range(5))
    with Workers(2, tmp_path / "logs", program(ANSWER)) as workers:
        assert workers.free == 2
        while waiting or workers.free < 2:
            while waiting and workers.free:
                seed = waiting.pop(0)
                workers.start(("a point", seed), config(seed), "a command")
            heard.append(workers.next())
            assert workers.free <= 2
    for seed in range(5):
        mine = [(told.kind, told.text) for told in heard if told.key == ("a point", seed)]
        assert mine == [("announce", f"at {seed}"), ("failed" if seed == 3 else "done", f"end of {seed}")]
    assert not list((tmp_path / "logs").iterdir()), "logs in which nothing is are removed"


@pytest.mark.parametrize(
    ("code", "told"),
    [(DIE, "its process ended with status 7"), (KILLED, "its process was ended by SIGKILL, perhaps because memory")],
)
def test_a_process_that_ends_too_early_is_a_run_that_failed(tmp_path: Path, code: str, told: str) -> None:
    with Workers(1, tmp_path / "logs", program(code)) as workers:
        workers.start(("a", 0), config(0), None)
        found = workers.next()
        assert (found.key, found.kind) == (("a", 0), "failed")
        assert found.text.startswith(told)
        assert ("what it printed" in found.text) == (code == DIE)
        assert workers.free == 1
        workers.start(("b", 1), config(1), None)  # in a new process
        assert workers.next().key == ("b", 1)


def test_runs_that_are_not_over_are_interrupted_and_waited_for(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with Workers(2, tmp_path / "logs", program(WAIT, ended)) as workers:
        workers.start(("a", 0), config(0), None)
        until(Path(f"{ended}.begun").exists)
    assert ended.read_text() == "recorded"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Eight cores, and memory for six processes as large as this one."""
    monkeypatch.setattr(side_by_side, "cores", lambda: 8)
    monkeypatch.setattr(side_by_side, "free_memory", lambda: 6_000_000)
    usage = SimpleNamespace(peak=1_000_000)
    monkeypatch.setattr(side_by_side, "peak_bytes", lambda: usage.peak)
    return usage


def many(count: int, **engine: Any) -> list[fedlab.Config]:
    return [config(seed, **engine) for seed in range(count)]


def test_as_many_runs_as_cores_and_memory_have_room_for(machine: Any) -> None:
    assert jobs_that_fit(many(20), 60.0) == 6
    assert jobs_that_fit(many(3), 60.0) == 3
    assert jobs_that_fit(many(20, threads=2), 60.0) == 4
    machine.peak = 100_000
    assert jobs_that_fit(many(20), 60.0) == 8
    machine.peak = 7_000_000
    assert jobs_that_fit(many(20), 60.0) == 1


def test_runs_that_need_the_machine_or_are_over_at_once_are_made_alone(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs_that_fit([*many(3), config(4, name="ray")], 60.0) == 1
    assert jobs_that_fit(many(20), 0.1) == 1
    assert jobs_that_fit([], 60.0) == 1
    monkeypatch.setattr(side_by_side, "check_engine", lambda engine: SimpleNamespace(device="cuda"))
    assert jobs_that_fit(many(20), 60.0) == 1
