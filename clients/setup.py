"""What a worker is given to serve the clients of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlab.assembly import Components
from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.method import Method


@dataclass(frozen=True)
class ClientSetup:
    """All a worker process needs to serve clients, but its device, which each machine chooses; picklable.

    Args:
        components: what both sides work with.
        federated: data of all clients.
        state_root: where this machine keeps the states of its clients.
        cache_root: where results that outlive runs are kept.
        preflight: one batch, nothing kept.
        client: the only client that is served, on a node of a deployment; None where messages name the client.
        asset_paths: where this machine has the files of assets, by name; None takes the configuration's.
    """

    components: Components
    federated: FederatedData
    state_root: Path
    cache_root: Path
    preflight: bool = False
    client: int | None = None
    asset_paths: Mapping[str, str] | None = None

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.components.config

    @property
    def method(self) -> Method:
        """The method object."""
        return self.components.method
