"""The data that the server of a deployment knows: its own sets of samples, and who takes part."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedlab.config import Config
from fedlab.config.node import ServerConfig
from fedlab.data.federated import FederatedData
from fedlab.data.own import located_server
from fedlab.data.partition.skew import size_figures
from fedlab.data.samples import Samples, on_device
from fedlab.data.server_sets import ServerSets
from fedlab.data.sources import build_source, load_source
from fedlab.data.sources.sites import own_data_settings, server_sets
from fedlab.errors import UNSET, ConfigError, did_you_mean
from fedlab.protocol.runconfig import Submission
from fedlab.server.evaluation import unevaluated
from fedlab.server.messaging.profiles import Profile
from fedlab.storage.cache import ResultCache
from fedlab.storage.paths import cache_folder
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.tracking import Tracker
from fedlab.tracking.left_out import LeftOut

SERVER_FILE = "FEDLAB_SERVER"
"""Environment variable of the server: the path of its file, see `fedlab.config.node.ServerConfig`."""


@dataclass(frozen=True)
class ServerData:
    """What the server of a deployment knows of the data before it asks any node.

    Args:
        names: of all clients, in the order of their ids.
        sets: the sets of samples that the server holds, normalized, by name.
        fingerprint: hash of the sets.
        data_fingerprint: hash of all data, partition and seed, where every node loads the configured data; else "".
        facts: content of ``partition.json`` that is known already; None if the nodes have to be asked.
        warnings: warnings about the data, as sentences.
        left_out: samples that are left out.
        asset_paths: where the server has the files of assets, by name.
    """

    names: Sequence[str]
    sets: Mapping[str, Samples]
    fingerprint: str
    data_fingerprint: str = ""
    facts: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    left_out: Sequence[LeftOut] = field(default=())
    asset_paths: Mapping[str, str] = field(default_factory=dict)

    def given(self, config: Config, device: torch.device) -> dict[str, Any]:
        """The arguments of `fedlab.server.setup.ServerSetup` that depend on the data.

        Args:
            config: the run's configuration.
            device: where the server computes.
        """
        # not tracking.cache as submitted, which is a folder of another machine
        cache = ResultCache(cache_folder().resolve(), lambda: self.fingerprint, config.seed, device)
        return {
            "data": {name: on_device(samples, device) for name, samples in self.sets.items()},
            "data_fingerprint": self.data_fingerprint,
            "cache": cache,
            "asset_paths": self.asset_paths,
        }

    def tell(self, tracker: Tracker) -> None:
        """Publish the warnings and what is left out, as a simulation does."""
        for warning in self.warnings:
            tracker.emit("warning", message=warning)
        for left in self.left_out:
            tracker.emit("left_out", **left.fields())

    def write_partition(self, folder: RunFolder, profiles: Sequence[Profile]) -> None:
        """Write who holds how many samples.

        Args:
            folder: the run folder.
            profiles: of the clients that take part.
        """
        facts = self.facts if self.facts is not None else stated_partition(self.names, profiles, self.sets)
        write_atomic(folder.partition, json.dumps(facts, indent=1))


def server_data(submitted: Submission) -> ServerData:
    """Load what the server holds.

    If every node takes its part of the configured data, the server loads that data too, and so has the sets that a
    simulation's server would have. Otherwise the sets that the configuration lists in ``data.source.server`` come from
    the server's own file, which the environment variable ``FEDLAB_SERVER`` names.

    Raises:
        ConfigError, ConfigErrors: the server's file is wrong, or lacks a set.
        DataError: data cannot be loaded.
    """
    config = submitted.config
    if not submitted.simulate_partition:
        return _own_sets(config)
    federated = FederatedData(load_source(config.data.source, config.seed), config.data, config.seed)
    rest = unevaluated(config, federated.num_clients, federated.unseen, federated.num_test)
    return ServerData(
        names=federated.partition.names,
        sets={name: federated.server(name) for name in federated.dataset.server},
        fingerprint=federated.server_fingerprint,
        data_fingerprint=federated.partition.fingerprint,
        facts=federated.facts(config.federation.rounds),
        warnings=federated.warnings,
        left_out=federated.left_out if rest is None else (*federated.left_out, rest),
        asset_paths=config.data.assets,
    )


def _own_sets(config: Config) -> ServerData:
    settings = own_data_settings(config.data)
    path = os.environ.get(SERVER_FILE)
    own = located_server(path) if path else ServerConfig()
    for name in settings.server:
        if name not in own.data:
            key = f"{SERVER_FILE}: data.{name}"
            expected = "a source of this set in the server's file, because the run's data.source.server lists it"
            how = did_you_mean(name, own.data) if own.data else f"add data: {{{name}: {{name: …, path: …}}}} to it"
            fix = (
                how
                if path
                else f"write a file with data: {{{name}: {{name: …, path: …}}}} and name it in {SERVER_FILE}"
            )
            raise ConfigError(key, UNSET, expected, fix)
    sources = {name: build_source(own.data[name], f"{SERVER_FILE}: data.{name}") for name in settings.server}
    found = server_sets(sources, settings.classes, config.seed, f"{SERVER_FILE}: data")
    sets = ServerSets(found, config.data)
    own_sets = {name: sets[name] for name in found}
    return ServerData(settings.names, own_sets, sets.fingerprint, asset_paths=own.assets)


def stated_partition(names: Sequence[str], profiles: Sequence[Profile], sets: Mapping[str, Samples]) -> dict[str, Any]:
    """Who holds how many samples, as far as the nodes state it, in the form of `fedlab.data.federated.summary`.

    How many samples of each class a node has does not leave the node, so all classes count as one.

    Args:
        names: of all clients, in the order of their ids.
        profiles: of those that take part.
        sets: what the server holds.
    """
    stated = {profile.client: profile for profile in profiles}
    clients = []
    for client, name in enumerate(names):
        profile = stated.get(client)
        train, test = (profile.train, profile.test) if profile else (0, 0)
        facts = {"name": name, "domain": name, "corruption": "", "unseen": profile is not None and profile.unseen}
        clients.append({**facts, "train": [train], "test": [test]})
    counts = {split: sum(getattr(profile, split) for profile in profiles) for split in ("train", "test")}
    held = {name: len(samples) for name, samples in sets.items()}
    return {
        "classes": ["all classes"],
        "domains": [],
        "clients": clients,
        "registered": len(names),
        "skew": size_figures([profile.train for profile in profiles if not profile.unseen]),
        "data": {"name": "sites", **counts, "server": held},
    }
