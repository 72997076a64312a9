"""Real SuperNodes that are cut off, lose their disk or answer badly, and a SuperLink that dies."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import fedlab
from fedlab.storage.checkpoint import load_checkpoint
from fedlab.tracking import History
from tests.data.site_folders import source, write_sites
from tests.deployment.federation import Federation, started
from tests.server.nodes import clients, count
from tests.waiting import until

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(7200)]

# does what files named ROUND-CLIENT ask for: with the ending .hold, it waits until the file is gone
METHOD = """
import os
import time
from pathlib import Path

import numpy as np
import torch

from fedlab.clients import app
from fedlab.methods.supervised.method import Supervised
from fedlab.protocol.messages import to_record

reply = app._reply


def bad_reply(message, context, answer, instructions, *, copy):
    made = reply(message, context, answer, instructions, copy=copy)
    arrays = {name: torch.from_numpy(np.array(array.numpy())) for name, array in made.content["arrays"].items()}
    first = next(iter(arrays))
    if kind == "infinite":
        arrays[first][...] = float("inf")
    elif kind == "shape":
        arrays[first] = torch.zeros(3, 5)
    elif kind == "extra":
        arrays["unknown"] = torch.zeros(3)
    elif kind == "oversized":
        arrays[first] = torch.zeros(20_000_000)
    made.content["arrays"] = to_record(arrays)
    return made


kind = ""


class Drill(Supervised):
    def fit(self, ctx):
        global kind
        ctx.train()
        if ctx.preflight:
            return
        place = Path(os.environ["FEDLAB_DRILL"], f"{ctx.round}-{ctx.client}")
        place.with_suffix(".here").touch()
        while place.with_suffix(".hold").exists():
            time.sleep(0.05)
        kind = place.read_text() if place.exists() else ""
        app._reply = bad_reply if kind else reply
        if kind == "crash":
            os._exit(3)
        if kind == "error":
            raise ArithmeticError("this site cannot count")
"""
KINDS = {2: "infinite", 3: "shape", 4: "extra", 5: "oversized", 6: "crash", 7: "error"}


def config(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        "seed": 3,
        "method": {"name": "drill_method:Drill"},
        "model": {"name": "logistic"},
        "data": {"source": source(folders), "partition": ["site"]},
        # a client's control variate is its own and changes from round to round
        "federation": {"rounds": 4, "strategy": {"name": "scaffold"}},
        "evaluation": {"every": 4},
        "engine": {"device": "cpu"},
        "tracking": {"report": False, "tensorboard": False},
    }


@dataclass
class Place:
    """A federation, and the folder in which its method finds what to do."""

    federation: Federation
    drill: Path

    def hold(self, round: int, client: int) -> Path:
        """Have a client wait in a round until the returned file is removed."""
        path = self.drill / f"{round}-{client}.hold"
        path.touch()
        return path

    def here(self, round: int, client: int) -> bool:
        """Whether a client is at work in a round, or has been."""
        return (self.drill / f"{round}-{client}.here").exists()

    def lost(self, name: str) -> bool:
        """Whether a run has noticed that a site is not connected."""
        history = History.from_jsonl(self.federation.folder.runs / name / "events.jsonl")
        return any(not event["connected"] for event in history.of("connection"))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("drills")
    for folder in ("modules", "drill"):
        (root / folder).mkdir()
    (root / "modules" / "drill_method.py").write_text(METHOD)
    path = os.pathsep.join(filter(None, [str(root / "modules"), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", path)
        environment.setenv("FEDLAB_DRILL", str(root / "drill"))
        environment.syspath_prepend(root / "modules")
        with started(root, config(write_sites(root / "data"))) as made:
            until(made.connected)
            yield made


@pytest.fixture
def place(federation: Federation) -> Iterator[Place]:
    drill = federation.config.parent / "drill"
    yield Place(federation, drill)
    for path in drill.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def simulated(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a simulation of the same sites ends with."""
    folder = tmp_path_factory.mktemp("simulated")
    here = {"folder": str(folder / "runs"), "cache": str(folder / "cache"), "console": "quiet", "tensorboard": False}
    given = config({site: federation.config.parent / "data" / site for site in ("berlin", "lyon", "oslo")})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FEDLAB_DRILL", str(folder))
        run = fedlab.run({**given, "engine": {"name": "inline", "device": "cpu"}, "tracking": here})
    return load_checkpoint(run.checkpoint)[0]


def run_words(federation: Federation, name: str, *sets: str) -> list[str]:
    given = [f"tracking.name={name}", *sets]
    return ["run", str(federation.config), "--plain", *(word for one in given for word in ("--set", one))]


def assert_equal(run: fedlab.Run, simulated: dict[str, torch.Tensor]) -> None:
    ours = load_checkpoint(run.checkpoint)[0]
    assert ours.keys() == simulated.keys()
    assert [name for name in ours if not torch.equal(ours[name], simulated[name])] == []


def test_a_site_that_answers_badly_is_left_out_round_by_round_with_the_reason(place: Place) -> None:
    for round, kind in KINDS.items():
        (place.drill / f"{round}-1").write_text(kind)
    skip = ("federation.on_client_error=skip", "federation.min_clients=2", "federation.rounds=8")
    done = place.federation.fedlab(*run_words(place.federation, "bad", *skip, "evaluation.every=8"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    run = fedlab.load(place.federation.folder.runs / "bad")
    assert clients(run) == [[0, 1, 2], *[[0, 2]] * len(KINDS), [0, 1, 2]]
    assert count(run, "what the client sent cannot be used") == 4
    assert count(run, "the client failed") == 2
    told = "\n".join(event["message"] for event in run.history.of("warning"))
    for words in (
        "this site cannot count",
        "the worker of this node ended",
        "[20000000]",
        "unknown",
        "[3, 5]",
        "finite",
    ):
        assert words in told, words
    assert all(torch.isfinite(value).all() for value in load_checkpoint(run.checkpoint)[0].values())


def test_a_site_that_is_cut_off_is_waited_for_and_the_result_is_the_same(
    place: Place, simulated: dict[str, torch.Tensor]
) -> None:
    held = place.hold(2, 1)
    skip = ("federation.on_client_error=skip", "federation.min_clients=3")
    running = place.federation.begin(*run_words(place.federation, "cut", *skip))
    until(lambda: place.here(2, 1) or running.poll() is not None)
    place.federation.signal("node-lyon", signal.SIGSTOP)

    until(lambda: place.lost("cut") or running.poll() is not None)
    held.unlink()
    place.federation.signal("node-lyon", signal.SIGCONT)
    stdout, stderr = running.communicate()
    assert running.returncode == 0, f"{stdout}\n{stderr}"
    run = fedlab.load(place.federation.folder.runs / "cut")
    assert [event["connected"] for event in run.history.of("connection")] == [False, True]
    assert clients(run) == [[0, 1, 2]] * 4
    assert_equal(run, simulated)


def test_a_superlink_that_was_killed_is_told_and_the_run_goes_on(
    place: Place, simulated: dict[str, torch.Tensor]
) -> None:
    held = place.hold(3, 0)
    running = place.federation.begin(*run_words(place.federation, "link"))
    until(lambda: place.here(3, 0) or running.poll() is not None)
    place.federation.kill("superlink")
    held.unlink()
    stdout, stderr = running.communicate()
    assert "the SuperLink does not answer" in stderr, f"{stdout}\n{stderr}"
    assert "the SuperLink answers again" in stderr
    if running.returncode:
        until(place.federation.connected)
        done = place.federation.fedlab("resume", "link", "--plain")
        assert done.returncode == 0, f"{stderr}\n{done.stdout}\n{done.stderr}"
    assert_equal(fedlab.load(place.federation.folder.runs / "link"), simulated)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 256 KB at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until nothing more can be written."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


def test_a_site_whose_disk_is_full_is_left_out_and_takes_part_again(place: Place) -> None:
    federation = place.federation
    runs = federation.folder.state / "nodes" / "lyon" / "runs"
    with small_disk(runs):
        full, freed = place.hold(2, 1), place.hold(3, 0)
        skip = ("federation.on_client_error=skip", "federation.min_clients=2")
        running = federation.begin(*run_words(federation, "disk", *skip))
        until(lambda: place.here(2, 1) or running.poll() is not None)
        fill(runs / "filler")
        full.unlink()
        until(lambda: place.here(3, 0) or running.poll() is not None)
        (runs / "filler").unlink()
        freed.unlink()
        stdout, stderr = running.communicate()
    assert running.returncode == 0, f"{stdout}\n{stderr}"
    run = fedlab.load(federation.folder.runs / "disk")
    assert clients(run)[1] == [0, 2]
    assert clients(run)[3] == [0, 1, 2]
    assert "the disk is full" in "\n".join(event["message"] for event in run.history.of("warning"))
