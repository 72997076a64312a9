"""`fedlab deploy` in containers: three sites with data of their own, one of which is cut off and comes back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedlab as package
from tests.data.site_folders import source, write_sites
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]
Called = Callable[..., str]

CONFIG: dict[str, Any] = {
    "seed": 3,
    "method": {"name": "supervised"},
    "model": {"name": "logistic"},
    "federation": {"rounds": 6},
    "engine": {"device": "cpu"},
    "tracking": {"name": "contained", "tensorboard": False},
}
# seconds; shorter than the minute after which Flower gives a node up. On a very busy machine it may do so all the same,
# and then `finish` waits for the node and lets the run go on
CUT_OFF = 15.0
REACH = "import socket; socket.create_connection(('gateway', 8443), 5)"


@pytest.fixture
def project(image: str, fedlab: Called, tmp_path: Path) -> Iterator[Path]:
    """The folder of a federation that is up."""
    folders = write_sites(tmp_path / "sites")
    config = {**CONFIG, "data": {"source": source(folders), "partition": ["site"]}}
    (tmp_path / "study.yaml").write_text(json.dumps(config))
    fedlab(tmp_path, "deploy", "init", "study.yaml", "--image", image)
    folder = tmp_path / "deployment"
    try:
        fedlab(tmp_path, "deploy", "up")
        yield folder
    finally:
        logs = subprocess.run(["docker", "compose", "logs", "--tail", "60"], cwd=folder, capture_output=True, text=True)
        sys.stderr.write(logs.stdout)
        fedlab(tmp_path, "deploy", "down")
        subprocess.run(["docker", "compose", "down", "--volumes"], cwd=folder, capture_output=True, check=False)


def container(folder: Path, service: str) -> str:
    command = ["docker", "compose", "ps", "--quiet", service]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def reaches(cut: str) -> bool:
    """Whether a SuperNode's container reaches the server."""
    command = ["docker", "exec", cut, "python", "-c", REACH]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def begun(folder: Path, words: str) -> tuple[subprocess.Popen[str], list[str]]:
    """`fedlab deploy run` when it has printed these words or has ended, and what it has printed so far."""
    program = Path(sys.executable).with_name("fedlab")
    command = [str(program), "deploy", "run", "study.yaml", "--plain"]
    running = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    told = []
    for line in running.stdout:
        told.append(line)
        if words in line:
            break
    return running, told


def finish(running: subprocess.Popen[str], told: list[str], fedlab: Called, folder: Path) -> None:
    """Wait for the end of the run. One that has lost a node or its server goes on when all are connected again."""
    assert running.stdout is not None
    told += running.stdout.readlines()
    if running.wait():
        until(lambda: fedlab(folder, "deploy", "status").count("│ connected") == 3)
        fedlab(folder, "deploy", "resume", "contained", "--plain")


def assert_as_simulated(project: Path, fedlab: Called, folder: Path) -> None:
    fedlab(folder, "run", "study.yaml", "--engine", "inline", "--folder", "simulated", "--quiet")
    deployed = package.load(project / "runs" / "contained")
    simulated = package.load(folder / "simulated" / "contained")
    assert deployed.history.end["status"] == "completed"
    assert deployed.metrics["mean"] == simulated.metrics["mean"]
    assert len({event["round"] for event in deployed.history.rounds}) == 6


def test_the_metrics_are_those_of_the_simulation_though_a_node_was_cut_off(
    project: Path, docker: Called, fedlab: Called, tmp_path: Path
) -> None:
    services = docker("compose", "--project-directory", str(project), "config", "--services").split()
    node = next(name for name in sorted(services) if name.endswith("-node"))
    cut = container(project, node)
    network = docker("inspect", "--format", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}", cut)
    fleet = next(name for name in network.split() if name.endswith("_fleet"))

    running, told = begun(tmp_path, "round 2")
    assert reaches(cut)
    docker("network", "disconnect", fleet, cut)
    time.sleep(CUT_OFF)
    assert not reaches(cut)
    docker("network", "connect", fleet, cut)
    finish(running, told, fedlab, tmp_path)
    assert_as_simulated(project, fedlab, tmp_path)


def test_a_superlink_that_crashes_is_started_again_and_the_run_goes_on(
    project: Path, fedlab: Called, tmp_path: Path
) -> None:
    running, told = begun(tmp_path, "round 2")
    # all processes but the first one and this one end, and with them the container
    command = ["docker", "exec", container(project, "superlink"), "python", "-c", "import os; os.kill(-1, 9)"]
    subprocess.run(command, capture_output=True, check=False)
    finish(running, told, fedlab, tmp_path)
    assert "the SuperLink does not answer" in "".join(told)
    assert_as_simulated(project, fedlab, tmp_path)


def test_a_key_that_others_can_read_is_refused_and_down_leaves_nothing(
    project: Path, docker: Called, fedlab: Called, tmp_path: Path
) -> None:
    private = [*project.glob("keys/*"), *project.glob("certificates/*.key")]
    assert len([path for path in private if path.suffix != ".pub"]) == 3 + 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in private if path.suffix != ".pub")
    fedlab(tmp_path, "deploy", "down")
    assert docker("compose", "--project-directory", str(project), "ps", "--quiet").strip() == ""
