"""Three sites with different data, TLS and keys of nodes: all of `fedlab deploy`, with a node that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fedlab
from fedlab.deployment import processes, supervisor
from fedlab.deployment.certificates import make_node_key
from fedlab.tracking import History
from tests.data.site_folders import source, write_sites
from tests.deployment.federation import Federation, started
from tests.waiting import until

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(7200)]

KILLED = "lyon"


def config(folders: dict[str, Path]) -> dict[str, Any]:
    method = {"name": "fedlgd", "ipc_local": 2, "ipc_global": 2, "warmup_steps": 3, "dm_steps": 2, "gm_steps": 2}
    return {
        "seed": 3,
        "method": {**method, "spacing": 1, "updates": 1},
        "model": {"name": "convnet", "width": 8},
        "data": {"source": source(folders), "partition": ["site"]},
        "training": {"lr": 0.05, "batch_size": 16},
        "federation": {"rounds": 3},
        "evaluation": {"every": 3},
        "engine": {"device": "cpu"},
    }


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("federation")
    with started(root, config(write_sites(root / "data"))) as made:
        yield made


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, federation: Federation) -> fedlab.Run:
    folder = tmp_path_factory.mktemp("simulated")
    here = {"folder": str(folder / "runs"), "cache": str(folder / "cache"), "console": "quiet", "tensorboard": False}
    given = json.loads(federation.config.read_text())
    return fedlab.run({**given, "engine": {"name": "inline", "device": "cpu"}, "tracking": here})


@pytest.fixture(scope="module")
def first(federation: Federation) -> subprocess.CompletedProcess[str]:
    """`fedlab deploy run` of a run in whose second round a SuperNode is killed."""
    running = federation.begin("run", federation.config, "--plain", "--set", "tracking.name=first")
    events = federation.folder.runs / "first" / "events.jsonl"
    until(lambda: running.poll() is not None or _training(events, 2))
    if running.poll() is None:
        federation.kill(f"node-{KILLED}")
    stdout, stderr = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)


def _training(events: Path, round: int) -> bool:
    history = History.from_jsonl(events)
    return any((e["round"], e["phase"]) == (round, "train") for e in history.of("phase_start"))


@pytest.fixture(scope="module")
def deployed(federation: Federation, first: subprocess.CompletedProcess[str]) -> fedlab.Run:
    """The run when all three rounds are done: at once, or by `fedlab deploy resume` when the node is back."""
    if first.returncode:
        until(federation.connected)
        done = federation.fedlab("resume", "first", "--plain")
        assert done.returncode == 0, f"{first.stderr}\n{done.stdout}\n{done.stderr}"
    return fedlab.load(federation.folder.runs / "first")


def test_the_node_was_killed_and_started_again(federation: Federation, deployed: fedlab.Run) -> None:
    standing = supervisor.standings(federation.folder)[f"node-{KILLED}"]
    assert standing.starts >= 2
    until(federation.connected)
    assert federation.fedlab("status").stdout.count("│ connected") == 3


def test_weights_and_metrics_are_those_of_the_simulation_bit_for_bit(
    deployed: fedlab.Run, simulated: fedlab.Run
) -> None:
    ours, theirs = (
        safetensors.torch.load_file(run.checkpoint / "tensors.safetensors") for run in (deployed, simulated)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert deployed.history.end["status"] == "completed"
    assert len({event["round"] for event in deployed.history.rounds}) == 3
    assert deployed.metrics["mean"] == simulated.metrics["mean"]
    assert deployed.metrics["clients"] == simulated.metrics["clients"]
    assert list(deployed.metrics["clients"]) == ["berlin", "lyon", "oslo"]


def test_progress_and_result_are_shown_as_a_simulation_shows_them(
    federation: Federation, first: subprocess.CompletedProcess[str], deployed: fedlab.Run
) -> None:
    assert "fedlgd · fedavg · convnet · seed 3 · 3 rounds" in first.stderr
    assert "round 1/3  training 3 clients" in first.stderr
    again = federation.fedlab("run", "--follow", "first", "--plain")
    assert again.returncode == 0, again.stderr
    assert "unweighted mean" in again.stdout
    assert "completed after" in again.stdout
    assert f"report: {(federation.folder.runs / 'first' / 'report.html').as_uri()}" in again.stdout


# what a site may send with FedLGD: records by kind of message, and values of records without tensors of the model
RECORDS = {
    "query.profile": {"config"},
    "query.prepare": {"extras", "metrics", "fedlab.timing", "fedlab.state"},
    "train": {"arrays", "metrics", "fedlab.timing", "fedlab.state"},
    "evaluate": {"sums", "metrics", "fedlab.timing"},
}
VALUES = {
    "config": {"client", "name", "train", "test", "unseen", "columns", "classes", "vocabulary", "clients", "device"},
    "extras": {"mean", "std", "present"},
    "sums": {"confusion", "loss_sum", "examples"},
    "fedlab.state": {"version"},
    "fedlab.missing": {"shared", "state"},
}


def test_nothing_leaves_a_node_but_what_is_declared(federation: Federation, deployed: fedlab.Run) -> None:
    kept = safetensors.torch.load_file(deployed.checkpoint / "tensors.safetensors")
    shapes = {name.removeprefix("network/"): list(value.shape) for name, value in kept.items()}
    for site in ("berlin", "lyon", "oslo"):
        file = federation.folder.state / "nodes" / site / "sent.jsonl"
        sent = [json.loads(line) for line in file.read_text().splitlines()]
        assert {entry["message"] for entry in sent} == set(RECORDS)
        for entry in sent:
            records = entry["records"]  # no reply was an error
            assert set(records) <= RECORDS[entry["message"]] or set(records) == {"fedlab.missing"}, entry
            for name, record in records.items():
                values = record["values"]
                if name == "arrays":
                    assert {key: shape for key, (_, shape, _) in values.items()}.items() <= shapes.items(), entry
                elif name in ("metrics", "fedlab.timing"):
                    assert all(kind in ("float", "int", "list of float") for kind, _ in values.values()), entry
                else:
                    assert set(values) <= VALUES[name], entry
                # no pictures, in any record: they would have their height and width
                assert not [key for key, value in values.items() if value[1][-2:] == [16, 16]], entry


def test_a_node_with_an_unknown_key_is_refused(federation: Federation, tmp_path: Path) -> None:
    make_node_key(tmp_path / "stranger", tmp_path / "stranger.pub")
    (node,) = [one for one in processes.programs(federation.folder) if one.name == "node-berlin"]
    command = [word.replace("{port}", str(processes.free_port())) for word in node.command]
    command[command.index("--auth-supernode-private-key") + 1] = str(tmp_path / "stranger")
    environment = {**processes.environment(federation.folder), "FLWR_HOME": str(tmp_path / "flower")}
    log = tmp_path / "stranger.log"
    with log.open("w") as file:  # no pipe, because the node's own SuperExec would keep it open until the node is reaped
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=file, stderr=file, check=False)
    assert done.returncode != 0
    assert "Failed to initialize the connection" in log.read_text()


def test_the_open_port_takes_no_orders(federation: Federation) -> None:
    settings = federation.folder.federation()
    home = federation.folder.path / "from-outside"
    home.mkdir(exist_ok=True)
    text = (federation.folder.flower / "config.toml").read_text()
    (home / "config.toml").write_text(text.replace(str(settings.control_port), str(settings.port)))
    command = [sys.executable, "-m", "flwr.cli.app", "ls", "fedlab"]
    environment = {**os.environ, "FLWR_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "first" not in done.stdout
