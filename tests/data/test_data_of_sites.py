"""What a node sees of its own data, held against what a simulation of all sites shows the same client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab.config import Component, DataConfig, parse
from fedlab.data.federated import ClientData, FederatedData
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import SOURCES, load_source
from fedlab.data.sources.sites import OneSite, SitesSettings
from fedlab.methods.supervised.method import Supervised
from fedlab.server.messaging.profiles import known_profiles
from tests.data.in_memory import Held
from tests.data.site_folders import CLASSES, COUNTS, source, write_sites

SITES = tuple(COUNTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sites(tmp_path_factory.mktemp("sites"))


def owned(folder: Path, site: str) -> Dataset:
    """A site's pictures with owners, of which lyon names none."""
    data = load_source(Component(name="folder", path=str(folder), size=16), 0)
    if site == "lyon":
        return data
    parts = [
        Samples(
            {**part.columns, "group": np.arange(len(part)) % 3}, part.class_names, part.domain_names, ("x", "y", "z")
        )
        for part in (data.train, data.test)
    ]
    return replace(data, train=parts[0], test=parts[1])


SECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validation": {"validation": 0.25},
    "validation_by_owner": {"validation": {"share": 0.3, "by": "group"}},
    "unseen_share": {"unseen": 0.4},
    "unseen_pattern": {"unseen": ["l*"], "validation": 0.2},
    "test_clients": {"test_clients": 0.5},
    "drift": {
        "validation": 0.2,
        "drift": [
            {"name": "labels", "rounds": 3, "share": 0.5},
            {"name": "corruption", "rounds": 2, "corruptions": ["fog", "shot_noise"], "start": 2, "end": 4},
        ],
    },
    "statistics": {
        "mean": {site: [0.1 * (1 + place)] * 3 for place, site in enumerate(SITES)},
        "std": {site: [0.2 * (1 + place)] for place, site in enumerate(SITES)},
    },
}


def same(one: ClientData, other: ClientData) -> None:
    assert (one.id, one.name) == (other.id, other.name)
    for split in ("train", "test", "validation"):
        ours, theirs = getattr(one, split), getattr(other, split)
        assert ours.columns.keys() == theirs.columns.keys()
        for name, values in ours.columns.items():
            assert values.dtype == theirs[name].dtype
            assert np.array_equal(values, theirs[name]), f"{split} {name}"
        assert ours.class_names == theirs.class_names
        assert ours.domain_names == theirs.domain_names
        assert ours.group_names == theirs.group_names
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("seed", [0, 5])
def test_a_node_sees_of_its_data_what_a_simulation_shows_its_client(
    folders: dict[str, Path], section: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = SOURCES.find
    monkeypatch.setattr(SOURCES, "find", lambda name, key=None: Held if name == "held" else find(name, key))
    monkeypatch.setattr(Held, "sets", {site: owned(folder, site) for site, folder in folders.items()})
    sites = {site: {"name": "held", "key": site} for site in SITES}
    all_of_it = {"source": {"name": "sites", "sites": sites, "classes": CLASSES}, "partition": ["site"]}
    data = parse(DataConfig, {**all_of_it, **SECTIONS[section]})
    simulated = FederatedData(load_source(data.source, seed), data, seed)
    method = Supervised(Supervised.Settings())
    profile = known_profiles(simulated, method)
    assert profile is not None
    settings = parse(SitesSettings, {"sites": SITES, "classes": CLASSES})
    for client, site in enumerate(SITES):
        one = OneSite(settings, site, Component(name="held", key=site))
        node = FederatedData(one.load(seed), data, seed, present=one.client)
        assert one.client == client
        for round in (0, 1, 2, 3):
            same(node.client(client, round), simulated.client(client, round))
        stated = known_profiles(node, method)
        assert stated is not None
        assert stated(client) == profile(client)
        assert node.unseen == simulated.unseen


def test_the_comparison_compares_something(folders: dict[str, Path]) -> None:
    data = parse(DataConfig, {"source": source(folders), "partition": ["site"], **SECTIONS["drift"]})
    whole = FederatedData(load_source(data.source, 0), data, 0)
    assert len({whole.client(client).fingerprint for client in range(3)}) == 3
    assert len({whole.client(1, round).fingerprint for round in (1, 2, 3)}) == 3
    assert [len(whole.client(client).validation) for client in range(3)] == [5, 4, 5]
    assert {len(whole.client(client, 1).train) for client in range(3)} == {10, 8}


def test_every_site_is_one_client_with_all_its_samples(folders: dict[str, Path]) -> None:
    data = parse(DataConfig, {"source": source(folders), "partition": ["site"]})
    federated = FederatedData(load_source(data.source, 0), data, 0)
    assert list(federated.partition.names) == list(SITES)
    counts = [sum(counts.values()) for counts in COUNTS.values()]
    assert [federated.num_train(c) + federated.num_test(c) for c in range(3)] == counts
    assert federated.class_names == CLASSES
    assert set(federated.client(1).train["label"].tolist()) == {0, 1}
    assert federated.client(1).train.class_names == CLASSES
    assert federated.dataset.train.group_names == tuple(f"{site}/all" for site in SITES)


def test_the_numbers_of_corrupted_pictures_are_their_places_on_the_site(folders: dict[str, Path]) -> None:
    """Otherwise the same picture would be spoilt in another way where the other sites' pictures come first."""
    drift = [{"name": "corruption", "rounds": 1, "corruptions": ["shot_noise"], "start": 3, "end": 3}]
    alone = {"name": "sites", "sites": {"oslo": {"name": "folder", "path": str(folders["oslo"]), "size": 16}}}
    seen = []
    for given in (alone, source(folders)):
        data = parse(DataConfig, {"source": given, "partition": ["site"], "drift": drift})
        federated = FederatedData(load_source(data.source, 0), data, 0)
        seen.append(federated.client(federated.num_clients - 1, 1).test["image"])
    assert np.array_equal(seen[0], seen[1])
