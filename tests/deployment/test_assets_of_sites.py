"""Assets of sites: their paths stand in files of the nodes and of the server, and never travel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors.torch import load_file, save_file
from torch import nn

from fedlab.clients.app import app
from fedlab.clients.deployed import setup_from_context
from fedlab.clients.runtime import ClientRuntime
from fedlab.config import Config, parse
from fedlab.data.own import located_node, located_server
from fedlab.deployment.prepared import prepared
from fedlab.engine.execution import set_task_identity
from fedlab.errors import ConfigErrors, FedLabError
from fedlab.method import Asset, Method, Task
from fedlab.methods.supervised.method import METHOD
from fedlab.protocol.runconfig import Submission, pack
from fedlab.server.deployed import server_data
from fedlab.server.messaging.profiles import stated_profile
from tests.data.site_folders import COUNTS, source, write_node, write_sites

HOLDS = {"lyon": ["uni"], "*": ["phikon"]}


def from_files(self: Method, task: Task) -> Mapping[str, Asset]:
    def load(name: str) -> nn.Module:
        network = nn.Linear(3, 2)
        network.load_state_dict(load_file(task.asset_paths[name]))
        return network

    return {"uni": lambda: load("uni"), "phikon": lambda: load("phikon")}


@pytest.fixture(autouse=True)
def _with_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    set_task_identity()
    monkeypatch.setattr(METHOD, "assets", from_files)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "uni.safetensors"
    path.parent.mkdir()
    save_file(nn.Linear(3, 2).state_dict(), path)
    return path


def configured(folders: dict[str, Path], **data: Any) -> Config:
    section = {"source": source(folders), "partition": ["site"], "holds": HOLDS, **data}
    return parse(Config, {"method": "supervised", "model": "logistic", "data": section})


def node_file(tmp_path: Path, site: str, folder: Path, **assets: str) -> Path:
    file = write_node(tmp_path / site / "node.yaml", site, folder)
    lines = ["assets:", *(f"  {name}: {path}" for name, path in assets.items())] if assets else []
    file.write_text(file.read_text() + "".join(f"{line}\n" for line in lines))
    return file


def test_a_node_loads_its_assets_from_the_paths_in_its_own_file(
    folders: dict[str, Path], tmp_path: Path, weights: Path
) -> None:
    config = configured(folders, assets={"uni": "/organizer/uni.safetensors"})
    sent = prepared(config)
    assert sent.data.assets == {}
    assert sent.data.holds == {"lyon": ("uni",), "*": ("phikon",)}
    assert "/organizer" not in json.dumps(pack(Submission(sent)))
    file = node_file(tmp_path, "lyon", folders["lyon"], uni="../weights/uni.safetensors")
    assert located_node(file).assets == {"uni": str(weights)}
    run_config = pack(Submission(sent, token="t"))
    setup = setup_from_context(run_config, {"node-file": str(file)}, 1)
    runtime = ClientRuntime(setup, torch.device("cpu"))
    holding = runtime.holding(list(COUNTS).index("lyon"))
    assert holding.names == ("uni",)
    assert torch.equal(holding.network("uni").state_dict()["weight"], load_file(weights)["weight"])
    reply = app(
        Message(RecordDict(), 7, "query.profile"), Context(1, 7, {"node-file": str(file)}, RecordDict(), run_config)
    )
    assert stated_profile(reply.content["config"]).assets == holding.hashes()  # type: ignore[arg-type]  # a record of facts


def test_a_node_whose_file_lacks_an_asset_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    file = node_file(tmp_path, "oslo", folders["oslo"])
    run_config = pack(Submission(prepared(configured(folders)), token="t"))
    reply = app(
        Message(RecordDict(), 8, "query.profile"), Context(1, 8, {"node-file": str(file)}, RecordDict(), run_config)
    )
    assert reply.has_error()
    assert "phikon" in reply.error.reason


def test_a_node_refuses_what_the_run_asks_of_assets_that_are_not_there(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    file = node_file(tmp_path, "oslo", folders["oslo"])
    for holds, hint in (
        ({"*": ["conch"]}, "an asset of the method: uni, phikon"),
        ({"osla": ["uni"]}, "did you mean 'oslo'"),
    ):
        config = configured(folders, holds=holds)
        setup = setup_from_context(pack(Submission(prepared(config))), {"node-file": str(file)}, 1)
        with pytest.raises(ConfigErrors, match=hint):
            ClientRuntime(setup, torch.device("cpu"))


def test_a_wrong_key_in_a_nodes_file_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    file = node_file(tmp_path, "lyon", folders["lyon"])
    file.write_text(file.read_text() + "asets: {uni: x}\n")
    with pytest.raises(ConfigErrors, match="did you mean 'assets'"):
        located_node(file)


def test_the_servers_assets_stand_in_its_own_file(
    folders: dict[str, Path], tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("assets: {uni: weights/uni.safetensors}\n")
    assert located_server(file).assets == {"uni": str(weights)}
    monkeypatch.setenv("FEDLAB_SERVER", str(file))
    run = Submission(prepared(configured(folders, server_holds=["uni"])))
    assert server_data(run).asset_paths == {"uni": str(weights)}


def test_a_node_of_a_divided_data_set_takes_the_paths_of_the_configuration(tmp_path: Path, weights: Path) -> None:
    data = {
        "source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 12},
        "assets": {"uni": str(weights)},
    }
    config = parse(Config, {"method": "supervised", "data": {**data, "partition": [{"name": "iid", "clients": 2}]}})
    run = pack(Submission(config, simulate_partition=True))
    setup = setup_from_context(run, {"partition-id": 0, "state-dir": str(tmp_path / "state")}, 1)
    assert setup.asset_paths == {"uni": str(weights)}
    runtime = ClientRuntime(setup, torch.device("cpu"))
    runtime.holding(0).network("uni")
    with pytest.raises((KeyError, FedLabError)):
        runtime.holding(0).network("phikon")
