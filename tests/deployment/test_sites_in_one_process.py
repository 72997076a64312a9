"""A deployed run of three sites, its nodes and its server in this process, and the simulation of the same folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

import fedlab
from fedlab.clients.app import app
from fedlab.config import Config, parse
from fedlab.deployment.prepared import prepared
from fedlab.engine.execution import set_task_identity
from fedlab.errors import RefusedError
from fedlab.protocol.runconfig import Submission, pack
from fedlab.server.app import main
from fedlab.storage.checkpoint import load_checkpoint
from tests.data.site_folders import COUNTS, source, write_node, write_sites
from tests.server.remote import RemoteGrid

SITES = tuple(COUNTS)
RUN_ID = 42
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {
        "method": "supervised",
        "data": {
            "validation": {"share": 0.2, "by": "sample"},
            "unseen": ["oslo"],
            "drift": [{"name": "corruption", "rounds": 1, "corruptions": ["fog", "contrast"], "end": 2}],
            "mean": {site: [0.1 * (1 + place)] for place, site in enumerate(SITES)},
        },
        "federation": {"strategy": "scaffold", "rounds": 2},
    },
    "fedlgd": {
        "method": {"name": "fedlgd", "ipc_local": 1, "ipc_global": 1, "warmup_steps": 2, "dm_steps": 1, "gm_steps": 1,
                   "spacing": 1, "updates": 1},
        "federation": {"rounds": 2},
    },
}  # fmt: skip


class Nodes(RemoteGrid):
    """Nodes in this process, each of which has its own file and sees nothing else."""

    def __init__(self, files: Iterable[Path], run_config: dict[str, Any]) -> None:
        self._contexts = {
            2000 + number: Context(RUN_ID, 2000 + number, {"node-file": str(file)}, RecordDict(), dict(run_config))
            for number, file in enumerate(files)
        }
        self._replies: dict[str, Message] = {}
        self.left: list[Message] = []
        """Every reply that has left a node."""

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            identity = str(len(self.left))
            message.metadata.__dict__["_message_id"] = identity
            reply = app(message, self._contexts[message.metadata.dst_node_id])
            self._replies[identity] = reply
            self.left.append(reply)
            sent.append(identity)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(identity) for identity in message_ids if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(list(messages)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sites(tmp_path_factory.mktemp("sites"))


def configured(folders: dict[str, Path], tmp_path: Path, kind: str, **changes: Any) -> Config:
    chosen = METHODS[kind]
    section = {"source": source(folders), "partition": ["site"], **chosen.get("data", {})}
    quiet = {"console": "quiet", "tensorboard": False, "report": False, "folder": str(tmp_path / "simulated")}
    common = {"model": {"name": "convnet", "width": 4, "depth": 2}, "training": {"lr": 0.05, "batch_size": 8}}
    engine = {"name": "inline", "device": "cpu"}
    return parse(Config, {**common, **chosen, "data": section, "engine": engine, "tracking": quiet, **changes})


@pytest.fixture
def deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Config, list[Path]], tuple[Nodes, fedlab.Run]]:
    monkeypatch.setenv("FEDLAB_RUNS", str(tmp_path / "deployed"))

    def carry(config: Config, files: list[Path]) -> tuple[Nodes, fedlab.Run]:
        set_task_identity()
        run_config = pack(Submission(prepared(config), token="t0ken"))
        grid = Nodes(files, run_config)
        main(grid, Context(RUN_ID, 0, {}, RecordDict(), dict(run_config)))
        (folder,) = (tmp_path / "deployed").iterdir()
        return grid, fedlab.load(folder)

    return carry


@pytest.mark.parametrize("kind", METHODS)
def test_three_sites_give_the_bits_of_their_simulation(
    folders: dict[str, Path], tmp_path: Path, kind: str, deploy: Callable[..., tuple[Nodes, fedlab.Run]]
) -> None:
    config = configured(folders, tmp_path, kind)
    # the nodes come in another order than the sites are listed in
    files = [write_node(tmp_path / site / "node.yaml", site, folders[site]) for site in reversed(SITES)]
    _, deployed = deploy(config, files)
    simulated = fedlab.run(config)
    ours, theirs = (load_checkpoint(run.checkpoint)[0] for run in (deployed, simulated))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    for scope in ("clients", "mean", "pooled", "unseen"):
        assert deployed.metrics[scope] == simulated.metrics[scope]
    assert set(deployed.metrics["clients"]) == set(SITES)
    told = json.loads(deployed.folder.partition.read_text())
    assert [client["name"] for client in told["clients"]] == list(SITES)
    assert [client["train"] for client in told["clients"]] == [
        [sum(client["train"])] for client in json.loads(simulated.folder.partition.read_text())["clients"]
    ]
    assert (tmp_path / "lyon" / "state").is_dir() or kind != "fedlgd"


def test_neither_counts_by_class_nor_places_leave_a_node(
    folders: dict[str, Path], tmp_path: Path, deploy: Callable[..., tuple[Nodes, fedlab.Run]]
) -> None:
    files = [write_node(tmp_path / site / "node.yaml", site, folders[site]) for site in SITES]
    grid, deployed = deploy(configured(folders, tmp_path, "supervised"), files)
    profiles = grid.left[:3]
    for reply in profiles:
        assert set(reply.content) == {"config"}
    texts = [repr(reply.content) for reply in profiles] + [deployed.folder.config.read_text()]
    assert not any(str(folder) in text for folder in folders.values() for text in texts)


def test_a_node_that_does_not_fit_ends_the_run_or_is_left_out(
    folders: dict[str, Path], tmp_path: Path, deploy: Callable[..., tuple[Nodes, fedlab.Run]]
) -> None:
    files = [write_node(tmp_path / site / "node.yaml", site, folders[site]) for site in SITES]
    write_node(files[0], "berlin", folders["berlin"], size=8)
    write_node(files[2], "osl", folders["oslo"])
    plain = {"data": {"source": source(folders), "partition": ["site"]}}
    with pytest.raises(RefusedError) as caught:
        deploy(configured(folders, tmp_path, "supervised", **plain), files)
    first, second = caught.value.refusals
    assert "site 'berlin': data = 'image of shape [3, 8, 8]'" in first
    assert "site 'osl': site = 'osl'" in second
    (failed,) = (tmp_path / "deployed").iterdir()
    assert fedlab.load(failed).history.end["status"] == "failed"
    failed.rename(tmp_path / "failed")
    federation = {"rounds": 1, "on_client_error": "skip"}
    _, run = deploy(configured(folders, tmp_path, "supervised", federation=federation, **plain), files)
    assert set(run.metrics["clients"]) == {"lyon"}
    (left,) = [left for left in run.history.left_out if left.what == "clients"]
    assert (left.count, left.total) == (2, 3)
    assert sum("site 'berlin'" in event["message"] for event in run.history.of("warning")) == 1
