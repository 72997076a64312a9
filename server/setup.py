"""What the server is given for one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlab.assembly import Components
from fedlab.callbacks import ConfiguredCallback
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.method import Method
from fedlab.server.messaging.profiles import Profile
from fedlab.server.participation.selection import Rules
from fedlab.server.strategies import Strategy
from fedlab.storage.cache import ResultCache
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking import Tracker


@dataclass(frozen=True)
class ServerSetup:
    """One run, from the server's side.

    Args:
        components: what both sides work with.
        strategy: aggregation rule.
        rules: who may take part in a round.
        device: where the server computes.
        tracker: where events go.
        folder: the run folder.
        denormalize: normalized images → [0, 1], for pictures.
        data: columns of the sample sets the server holds, by name.
        data_fingerprint: hash of data, partition and seed.
        cache: results that outlive runs; None keeps nothing.
        client_states: states of the simulated clients on this machine; None in a deployment.
        client_test: their test columns; None likewise.
        callbacks: follow the run, in the order in which they are called.
        profiles: makes a simulated client's profile; None where clients must be asked.
        holds_out: whether any client may be one that never trains; a deployment finds out by asking.
        asset_paths: where the server has the files of assets, by name; None takes the configuration's.
        expected_clients: nodes to wait for in a deployment; None where the engine knows its clients.
        client_names: names of all clients of a deployment, in the order of their ids.
        members: names by id of the clients with which a deployed run began that goes on; empty for any other run.
    """

    components: Components
    strategy: Strategy
    rules: Rules
    device: torch.device
    tracker: Tracker
    folder: RunFolder
    denormalize: Callable[[Tensor], Tensor]
    data: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    data_fingerprint: str = ""
    cache: ResultCache | None = None
    client_states: StateStore | None = None
    client_test: Callable[[int], Mapping[str, Tensor]] | None = None
    callbacks: Sequence[ConfiguredCallback] = ()
    profiles: Callable[[int], Profile] | None = None
    holds_out: bool = True
    asset_paths: Mapping[str, str] | None = None
    expected_clients: int | None = None
    client_names: Sequence[str] = ()
    members: Mapping[int, str] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.components.config

    @property
    def method(self) -> Method:
        """The method object."""
        return self.components.method
