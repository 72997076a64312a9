"""The sequence for several machines on one: a project of the organizer and one of each site, which share nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

import fedlab as package
from tests.data.site_folders import CLASSES, source, write_sites
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]
Called = Callable[..., str]

CONFIG: dict[str, Any] = {
    "seed": 3,
    "method": {"name": "supervised"},
    "model": {"name": "logistic"},
    "federation": {"rounds": 2},
    "engine": {"device": "cpu"},
    "tracking": {"name": "apart", "tensorboard": False},
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return write_sites(tmp_path / "sites")


@pytest.fixture
def projects(
    image: str, docker: Called, fedlab: Called, tmp_path: Path, folders: dict[str, Path]
) -> Iterator[dict[str, Path]]:
    """The folders of the organizer and of each site, by name; everything in them is up."""
    # the sites find the organizer at the address that this machine has for all containers, the gateway of their network
    routes = docker("run", "--rm", "--entrypoint", "cat", image, "/proc/net/route").splitlines()
    gateway = next(route.split()[2] for route in routes if route.split()[1] == "00000000")
    host = str(IPv4Address(bytes.fromhex(gateway)[::-1]))
    listed = {"name": "sites", "sites": list(folders), "classes": list(CLASSES), "columns": {"image": [3, 16, 16]}}
    study = {**CONFIG, "data": {"source": listed, "partition": ["site"]}}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    fedlab(tmp_path, "deploy", "init", "study.yaml", "--host", host, "--image", image)
    made = {"organizer": tmp_path / "deployment"}
    try:
        fedlab(tmp_path, "deploy", "up")
        for site, data in folders.items():
            file = made["organizer"] / "hand-over" / f"{site}.fedlab"
            made[site] = tmp_path / site
            fedlab(tmp_path, "deploy", "node", file, site, "--data", data, "--set", "data.size=16")
            fedlab(tmp_path, "deploy", "up", "--folder", site)
        yield made
    finally:
        for folder in reversed(made.values()):
            for words in (["logs", "--tail", "30"], ["down", "--volumes"]):
                command = ["docker", "compose", *words]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
                sys.stderr.write(done.stdout)


def test_sites_in_projects_of_their_own_give_the_result_of_the_simulation(
    projects: dict[str, Path], folders: dict[str, Path], docker: Called, fedlab: Called, tmp_path: Path
) -> None:
    until(lambda: fedlab(tmp_path, "deploy", "status").count("│ connected") >= len(folders))
    fedlab(tmp_path, "deploy", "run", "study.yaml", "--plain")
    simulation = {**CONFIG, "data": {"source": source(folders), "partition": ["site"]}}
    (tmp_path / "simulation.yaml").write_text(json.dumps(simulation))
    fedlab(tmp_path, "run", "simulation.yaml", "--engine", "inline", "--folder", "simulated", "--quiet")
    deployed = package.load(projects["organizer"] / "runs" / "apart")
    simulated = package.load(tmp_path / "simulated" / "apart")
    assert deployed.metrics["mean"] == simulated.metrics["mean"]
    assert set(deployed.metrics["clients"]) == set(folders)
    # what the operator is told to look for, and the way to leave
    logs = docker("compose", "--project-directory", str(projects["berlin"]), "logs", "berlin-node")
    assert "SuperNode ID: " in logs
    fedlab(tmp_path, "deploy", "down", "--folder", "berlin")
    assert docker("compose", "--project-directory", str(projects["berlin"]), "ps", "--quiet").strip() == ""
