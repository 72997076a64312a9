"""Nodes and servers with data of their own: their files, what is sent to them, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedlab.clients.app import _deployed_runtime, app
from fedlab.clients.deployed import setup_from_context
from fedlab.clients.setup import ClientSetup
from fedlab.config import Config, parse
from fedlab.config.node import read_node
from fedlab.data.federated import FederatedData
from fedlab.data.own import located_node, located_server
from fedlab.data.sources import load_source
from fedlab.deployment.prepared import prepared
from fedlab.engine.execution import set_task_identity
from fedlab.errors import ConfigError, ConfigErrors, FedLabError
from fedlab.protocol.runconfig import SIMULATE_KEY, Submission, pack
from fedlab.server.deployed import server_data, stated_partition
from fedlab.server.messaging.profiles import Profile, known_profiles, stated_profile
from tests.data.site_folders import CLASSES, COUNTS, source, write_node, write_site, write_sites

SITES = tuple(COUNTS)


@pytest.fixture(autouse=True)
def _message_can_be_made() -> None:
    set_task_identity()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sites(tmp_path_factory.mktemp("sites"))


def configured(folders: dict[str, Path], **data: Any) -> Config:
    section = {"source": source(folders), "partition": ["site"], "validation": 0.2, **data}
    return parse(Config, {"method": "supervised", "model": "logistic", "data": section})


def submitted(config: Config, **changes: Any) -> dict[str, Any]:
    return {**pack(Submission(prepared(config), token="t")), **changes}


def node_setup(config: Config, file: Path | str) -> ClientSetup:
    return setup_from_context(submitted(config), {"node-file": str(file)}, 1)


# files


def test_paths_in_a_nodes_file_start_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "node.yaml").write_text("site: berlin\ndata: {name: folder, path: pictures}\n")
    monkeypatch.chdir(tmp_path)
    node = located_node("here/node.yaml")
    assert node.data.settings["path"] == str(tmp_path / "here" / "pictures")
    assert node.state == read_node("here/node.yaml").state == str(tmp_path / "here" / "state")
    (tmp_path / "here" / "node.yaml").write_text(
        "site: berlin\ndata: {name: union, sources: {a: {name: npz, path: ../x.npz}}}\nstate: /var/fedlab\n"
    )
    node = located_node("here/node.yaml")
    assert node.data.settings["sources"]["a"]["path"] == str(tmp_path / "x.npz")
    assert node.state == "/var/fedlab"
    (tmp_path / "server.yaml").write_text("data: {public: {name: folder, path: public}}\n")
    assert located_server("server.yaml").data["public"].settings["path"] == str(tmp_path / "public")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("sites: berlin\ndata: digits\n", "did you mean 'site'"),
        ("site: berlin\n", "data: this key is required"),
        ("site: a/b\ndata: digits\n", "pattern"),
        ("- berlin\n", "a YAML mapping"),
    ],
)
def test_a_wrong_file_of_a_node_is_refused(tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "node.yaml").write_text(text)
    with pytest.raises(ConfigErrors, match=hint):
        located_node(tmp_path / "node.yaml")
    with pytest.raises(ConfigErrors, match="a readable YAML file"):
        located_node(tmp_path / "gone.yaml")


def test_a_nodes_file_is_read_without_torch() -> None:
    """The light app that runs for every message looks into it."""
    code = "import sys; import fedlab.config.node; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# nodes


def test_a_node_loads_its_own_data_and_is_the_client_of_its_place(folders: dict[str, Path], tmp_path: Path) -> None:
    config = configured(folders)
    simulated = FederatedData(load_source(config.data.source, config.seed), config.data, config.seed)
    for client, site in enumerate(SITES):
        setup = node_setup(config, write_node(tmp_path / site / "node.yaml", site, folders[site]))
        assert (setup.client, setup.federated.present, setup.federated.num_clients) == (client, client, 3)
        assert setup.federated.client(client).fingerprint == simulated.client(client).fingerprint
        assert setup.cache_root == tmp_path / site / "state" / "cache"
        assert setup.state_root.is_relative_to(tmp_path / site / "state")
        counts = COUNTS[site].values()
        assert len(setup.federated.dataset.train) + len(setup.federated.dataset.test) == sum(counts)


def test_the_profile_that_a_node_sends_is_that_of_the_simulated_client(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = configured(folders)
    data = FederatedData(load_source(config.data.source, config.seed), config.data, config.seed)
    file = write_node(tmp_path / "node.yaml", "lyon", folders["lyon"])
    context = Context(1, 7, {"node-file": str(file)}, RecordDict(), submitted(config))
    reply = app(Message(RecordDict(), 7, "query.profile"), context)
    record = reply.content["config"]
    assert isinstance(record, ConfigRecord)
    method = _deployed_runtime(context).method
    known = known_profiles(data, method)
    assert known is not None
    assert stated_profile(record) == known(1)
    named = {"client", "name", "train", "test", "unseen", "columns", "classes", "vocabulary", "clients", "device"}
    assert set(record) == named, "whatever else is added here leaves the site"


def test_what_a_node_refuses_is_told_with_its_site_and_without_a_traceback(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    file = write_node(tmp_path / "node.yaml", "lyon", folders["lyon"], size=8)
    context = Context(1, 8, {"node-file": str(file)}, RecordDict(), submitted(configured(folders)))
    reply = app(Message(RecordDict(), 8, "query.profile"), context)
    assert reply.has_error()
    assert reply.error.reason.startswith("site 'lyon': data = 'image of shape [3, 8, 8]'\n  expected: [3, 16, 16]")
    assert "Traceback" not in reply.error.reason


@pytest.mark.parametrize(
    ("site", "changes", "hint"),
    [
        (
            "lyonn",
            {},
            r"site 'lyonn': site = 'lyonn'\n  expected: one of the sites of this run: berlin, lyon, oslo\n.*did",
        ),
        ("lyon", {"path": "gone"}, r"site 'lyon': data\.path = '[^']*gone'"),
        ("lyon", {"name": "foldr"}, r"site 'lyon': data\.name = 'foldr'[\s\S]*did you mean 'folder'"),
        ("lyon", {"sze": 4}, r"site 'lyon': data\.sze = 4[\s\S]*did you mean 'size'"),
    ],
)
def test_nodes_whose_file_does_not_fit_the_run_are_refused(
    folders: dict[str, Path], tmp_path: Path, site: str, changes: dict[str, Any], hint: str
) -> None:
    file = write_node(tmp_path / "node.yaml", site, folders["lyon"], **changes)
    with pytest.raises(FedLabError, match=hint):
        node_setup(configured(folders), file)


def test_a_class_that_is_not_agreed_is_refused_on_the_node(folders: dict[str, Path], tmp_path: Path) -> None:
    extra = write_site(tmp_path / "extra", "oslo")
    (extra / "ring").rename(extra / "star")
    with pytest.raises(
        FedLabError, match=r"site 'oslo': data = \"samples of the class 'star'\"[\s\S]*bars, disk, ring"
    ):
        node_setup(configured(folders), write_node(tmp_path / "node.yaml", "oslo", extra))


def test_nodes_and_runs_of_the_two_kinds_do_not_mix(folders: dict[str, Path], tmp_path: Path) -> None:
    config = configured(folders)
    with pytest.raises(ConfigError, match=r"node-config node-file: the path of this node's file"):
        setup_from_context(submitted(config), {"partition-id": 0}, 1)
    file = write_node(tmp_path / "node.yaml", "lyon", folders["lyon"])
    with pytest.raises(ConfigError, match="node-config partition-id"):
        setup_from_context({**pack(Submission(config)), SIMULATE_KEY: True}, {"node-file": str(file)}, 1)
    divided = configured(folders, partition=[{"name": "iid", "clients": 2}])
    with pytest.raises(ConfigError, match=r"site 'lyon': data\.partition = \['iid'\][\s\S]*--simulate-partition"):
        setup_from_context(pack(Submission(divided)), {"node-file": str(file)}, 1)


# what is submitted


def test_no_place_of_anybodys_data_is_sent(folders: dict[str, Path]) -> None:
    config = configured(folders)
    settings = {**config.data.source.settings, "server": {"public": {"name": "folder", "path": str(folders["oslo"])}}}
    config = config.with_overrides({"data.source": {"name": "sites", **settings}})
    sent = prepared(config)
    assert sent.data.source.settings["sites"] == list(SITES)
    assert sent.data.source.settings["server"] == ["public"]
    assert sent.data.source.settings["classes"] == list(CLASSES)
    text = json.dumps(pack(Submission(sent)))
    assert not any(str(folder) in text for folder in folders.values())
    assert prepared(sent) == sent, "a configuration that only lists names can be submitted as it is"


def test_a_configuration_that_divides_a_source_is_refused_unless_that_is_asked_for(folders: dict[str, Path]) -> None:
    config = parse(Config, {"method": "supervised", "data": {"source": "digits"}})
    with pytest.raises(ConfigError, match=r"data\.partition = \['iid'\][\s\S]*--simulate-partition"):
        prepared(config)
    assert prepared(config, simulate_partition=True) is config
    with pytest.raises(ConfigErrors, match=r"data\.source\.name = 'digits'"):
        prepared(config.with_overrides({"data.partition": ["site"]}))


def test_probes_ask_for_sets_that_the_server_is_to_hold(folders: dict[str, Path]) -> None:
    config = configured(folders).with_overrides({"probes": [{"name": "knn", "fit": "public", "test": "query"}]})
    with pytest.raises(ConfigErrors) as caught:
        prepared(config)
    assert [error.key for error in caught.value.errors] == ["probes.0.fit", "probes.0.test"]
    prepared(config.with_overrides({"data.source.server": ["public", "query"]}))


# the server


def test_the_servers_sets_come_from_its_own_file(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = {"name": "folder", "path": str(folders["lyon"]), "size": 16}
    given = {**source(folders), "server": {"public": public}}
    config = configured(folders, source=given)
    simulated = FederatedData(load_source(config.data.source, 0), config.data, 0)
    run = Submission(prepared(config))
    monkeypatch.delenv("FEDLAB_SERVER", raising=False)
    with pytest.raises(ConfigError, match=r"FEDLAB_SERVER: data\.public: a source of this set[\s\S]*write a file"):
        server_data(run)
    file = tmp_path / "server.yaml"
    file.write_text("data: {pubic: digits}\n")
    monkeypatch.setenv("FEDLAB_SERVER", str(file))
    with pytest.raises(ConfigError, match="did you mean 'pubic'"):
        server_data(run)
    file.write_text(json.dumps({"data": {"public": public, "not_asked_for": {"name": "npz", "path": "gone"}}}))
    found = server_data(run)
    assert list(found.names) == list(SITES)
    assert found.sets.keys() == {"public"}
    assert np.array_equal(found.sets["public"]["image"], simulated.server("public")["image"])
    assert np.array_equal(found.sets["public"]["label"], simulated.server("public")["label"])
    assert found.fingerprint == simulated.server_fingerprint
    file.write_text("data: {public: {name: folder, path: gone}}\n")
    with pytest.raises(FedLabError, match=r"FEDLAB_SERVER: data\.public\.path"):
        server_data(run)


def test_the_server_of_a_simulated_partition_knows_what_a_simulations_server_knows() -> None:
    digits = {"name": "digits", "domains": ["synth"], "train_per_domain": 40, "test_per_domain": 10}
    section = {"source": digits, "partition": [{"name": "iid", "clients": 2}], "held": {"probe": {"share": 0.2}}}
    config = parse(Config, {"method": "supervised", "data": section})
    federated = FederatedData(load_source(config.data.source, 0), config.data, 0)
    found = server_data(Submission(config, simulate_partition=True))
    assert found.data_fingerprint == federated.partition.fingerprint
    assert np.array_equal(found.sets["probe"]["image"], federated.server("probe")["image"])
    assert found.facts == federated.facts(config.federation.rounds)
    assert len(found.names) == 2


def test_the_partition_is_written_as_far_as_the_nodes_state_it() -> None:
    def profile(client: int, unseen: bool = False) -> Profile:
        return Profile(client, SITES[client], 10 + client, 5, {}, CLASSES, 3, unseen)

    facts = stated_partition(SITES, [profile(0), profile(2, unseen=True)], {})
    assert [(c["name"], c["train"], c["test"], c["unseen"]) for c in facts["clients"]] == [
        ("berlin", [10], [5], False), ("lyon", [0], [0], False), ("oslo", [12], [5], True),
    ]  # fmt: skip
    assert (facts["skew"]["samples"], facts["skew"]["clients"], facts["data"]["train"]) == (10, 1, 22)
