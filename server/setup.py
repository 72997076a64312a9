"""What the server is given for one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.method import Method
from fedlab.server.messaging.profiles import Profile
from fedlab.storage.cache import ResultCache
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking import Tracker


@dataclass(frozen=True)
class ServerSetup:
    """One run, from the server's side.

    Args:
        config: the run's configuration.
        method: the method object.
        strategy: aggregation rule.
        tracker: where events go.
        folder: the run folder.
        denormalize: normalized images → [0, 1], for pictures.
        data: columns of the sample sets the server holds, by name.
        data_fingerprint: hash of data, partition and seed.
        cache: results that outlive runs; None keeps nothing.
        client_states: states of the simulated clients on this machine; None in a deployment.
        client_test: their test columns; None likewise.
        profiles: makes a simulated client's profile; None where clients must be asked.
        holds_out: whether any client may be one that never trains; a deployment finds out by asking.
        expected_clients: nodes to wait for in a deployment; None where the engine knows its clients.
    """

    config: Config
    method: Method
    strategy: Strategy
    tracker: Tracker
    folder: RunFolder
    denormalize: Callable[[Tensor], Tensor]
    data: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    data_fingerprint: str = ""
    cache: ResultCache | None = None
    client_states: StateStore | None = None
    client_test: Callable[[int], Mapping[str, Tensor]] | None = None
    profiles: Callable[[int], Profile] | None = None
    holds_out: bool = True
    expected_clients: int | None = None
