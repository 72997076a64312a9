"""All that lasts on the server from one round to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedlab.server.callbacks import CallbackRunner
from fedlab.server.flights import Flights
from fedlab.server.messaging.shared import SharedTensors
from fedlab.server.participation.selection import ClientSelector
from fedlab.server.privacy import Account
from fedlab.server.strategies.rounds import RoundStrategy
from fedlab.server.watch import Watch


@dataclass
class ServerState:
    """What a checkpoint holds and what a round changes.

    Args:
        network: state of the networks by name; the tensors are the networks' own and are changed in place.
        lasting: names of the network state that no round is meant to change.
        strategy: aggregation rule, which may keep arrays.
        selector: chooses clients; keeps the virtual clock and what it has learned of the clients.
        watch: looks for divergence; keeps what earlier evaluations have shown.
        callbacks: calls the run's callbacks; keeps their state and what they have asked for.
        account: of the privacy spent; None where no guarantee is configured.
        assets: hash of each asset that a participant holds, by name.
        flights: clients at work in asynchronous training; None in synchronous training.
        shared: the server's tensors that every client has a copy of, and who holds which version.
        private: the server's tensors that never leave it.
        checkpoints: rounds of the last two checkpoints: the newest may turn out to be damaged.
        versions: version of the state of each client of a deployment that came with a reply which was used. In a
            simulation the engine keeps the versions.
    """

    network: Mapping[str, Tensor]
    lasting: frozenset[str]
    strategy: RoundStrategy
    selector: ClientSelector
    watch: Watch
    callbacks: CallbackRunner
    account: Account | None = None
    assets: Mapping[str, str] = field(default_factory=dict)
    flights: Flights | None = None
    shared: SharedTensors = field(default_factory=SharedTensors)
    private: dict[str, Tensor] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    versions: dict[int, int] = field(default_factory=dict)

    def checkpointed(self, round: int) -> None:
        """A checkpoint of this round exists now."""
        self.checkpoints = (*self.checkpoints, round)[-2:]
