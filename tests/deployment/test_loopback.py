"""Flower's SuperLink and SuperNodes carry the same run as the simulation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

import fedlab
from fedlab.cli.deploy import submit as deploy_command
from fedlab.cli.failures import FAILED, Commands
from fedlab.config import Config, parse
from fedlab.deployment.submit import DeploymentError, status, submit, wait

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(7200)]

SUPERLINK = "loop"

# round 1 is selected: the server makes new global images, which round 2 sends again
CONFIG: dict[str, Any] = {
    "seed": 3,
    "method": {
        "name": "fedlgd",
        "ipc_local": 2,
        "ipc_global": 2,
        "warmup_steps": 3,
        "dm_steps": 2,
        "gm_steps": 2,
        "spacing": 1,
        "updates": 1,
    },
    "model": {"name": "convnet", "width": 8},
    "data": {
        "source": {
            "name": "digits",
            "domains": ["handwritten", "mnist"],
            "train_per_domain": 60,
            "test_per_domain": 30,
        },
        "partition": [{"name": "domain"}],
    },
    "training": {"lr": 0.05, "batch_size": 16},
    "federation": {"rounds": 2},
    "evaluation": {"every": 2},
    "engine": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def good(deployment: Path) -> int:
    return submit(parse(Config, CONFIG), SUPERLINK, simulate_partition=True)


@pytest.fixture(scope="module")
def broken(deployment: Path, good: int) -> Result:
    """`fedlab submit` of a run whose second client fails, while the good one is going on."""
    config = {**CONFIG, "method": {"name": "broken_method:Broken"}, "tracking": {"name": "broken"}}
    (deployment / "broken.yaml").write_text(json.dumps(config))
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.command()(deploy_command)
    app.command()(lambda: None)  # a group, as the real command line is
    command = ["submit", str(deployment / "broken.yaml"), "--superlink", SUPERLINK, "--simulate-partition"]
    return CliRunner().invoke(app, command)


@pytest.fixture(scope="module")
def deployed(deployment: Path, logs: Callable[[], str], good: int, broken: Result) -> fedlab.Run:
    try:
        wait(good, SUPERLINK)
    except DeploymentError as error:
        pytest.fail(f"{error}\n{logs()}")
    (folder,) = (deployment / "runs").glob("fedlgd-*")
    return fedlab.load(folder)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> fedlab.Run:
    folder = tmp_path_factory.mktemp("simulated")
    here = {"folder": str(folder / "runs"), "cache": str(folder / "cache"), "console": "quiet", "tensorboard": False}
    config = {**CONFIG, "engine": {"name": "inline", "device": "cpu"}, "tracking": here}
    return fedlab.run(config)


def test_the_final_weights_and_global_images_are_those_of_the_simulation_bit_for_bit(
    deployed: fedlab.Run, simulated: fedlab.Run
) -> None:
    ours, theirs = (
        safetensors.torch.load_file(run.checkpoint / "tensors.safetensors") for run in (deployed, simulated)
    )
    assert "shared/images" in ours
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_the_server_keeps_the_same_records_as_a_simulation(deployed: fedlab.Run, simulated: fedlab.Run) -> None:
    assert deployed.history.end["status"] == "completed"
    assert deployed.history.start["engine"] == "deployment"
    assert [event["clients"] for event in deployed.history.rounds] == [[0, 1], [0, 1]]
    assert deployed.metrics["mean"] == simulated.metrics["mean"]
    assert set(deployed.metrics["clients"]) == {"handwritten", "mnist"}
    assert deployed.folder.report.stat().st_size > 1000
    sent = [event["bytes"]["shared"]["down"] for event in deployed.history.rounds]
    assert sent == [event["bytes"]["shared"]["down"] for event in simulated.history.rounds]
    assert sent[1] > 0


def test_local_virtual_images_lie_on_their_node_and_nowhere_else(
    deployment: Path, good: int, deployed: fedlab.Run
) -> None:
    private: dict[int, list[bytes]] = {}
    token = json.loads(deployed.folder.deployment.read_text())["token"]
    for client in (0, 1):
        (folder,) = (deployment / f"node{client}" / "runs").glob(token)
        states = sorted(folder.rglob("*.state"))
        assert [path.stem for path in states]
        images = [safetensors.torch.load(path.read_bytes()[16:])["images"] for path in states]
        assert all(image.shape == (20, 3, 28, 28) for image in images)
        private[client] = [image.numpy().tobytes() for image in images]
    for path in deployment.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        for client, held in private.items():
            if path.is_relative_to(deployment / f"node{client}"):
                continue
            assert not any(image in content for image in held), f"{path} holds images of client {client}"


def test_an_error_of_a_client_reaches_the_submitter_and_the_run_folder_with_its_traceback(
    deployment: Path, broken: Result
) -> None:
    assert broken.exit_code == FAILED
    assert "flwr log" in broken.stdout
    run = fedlab.load(deployment / "runs" / "broken")
    assert run.history.end["status"] == "failed"
    for told in (broken.stderr, run.history.end["error"]):
        assert "client 1 failed in round 1, phase train" in told
        assert "Traceback" in told
        assert 'raise ArithmeticError("one of the nodes cannot count")' in told
    assert run.folder.report.is_file()


def test_unknown_connections_and_runs_are_refused(deployment: Path) -> None:
    with pytest.raises(DeploymentError, match="'nowhere' not found"):
        submit(parse(Config, CONFIG), "nowhere", simulate_partition=True)
    with pytest.raises(DeploymentError, match="flwr ls"):
        status(5, SUPERLINK)
    wrong = {**CONFIG, "method": {"name": "fedlgd", "ipc_locl": 2}}
    with pytest.raises(fedlab.FedLabError, match="did you mean 'ipc_local'"):
        submit(parse(Config, wrong), SUPERLINK, simulate_partition=True)
