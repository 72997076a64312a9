"""Which clients of a deployment are connected, and how long the server waits for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from fedlab.config import FederationConfig
from fedlab.errors import MachineError
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.tracking import Tracker

log = logging.getLogger(__name__)
_PAUSE = 0.5  # seconds between two queries for the connected nodes
_NAMED = 10  # clients in one message


class Presence:
    """Waits for the clients that are needed, and tells who goes away and who comes back.

    Args:
        directory: the clients.
        federation: the configuration's section, which says how many clients are needed and how long to wait for them.
        tracker: receives an event for each client that goes away or comes back.
    """

    def __init__(self, directory: ClientDirectory, federation: FederationConfig, tracker: Tracker) -> None:
        self._directory, self._federation, self._tracker = directory, federation, tracker
        self._away: set[int] = set()

    def choosable(self, clients: Sequence[int], round: int, fewest: int = 0) -> Sequence[int]:
        """The clients among which those of a round are chosen.

        With ``federation.on_client_error: skip`` they are the ones that are connected. At least
        ``federation.min_clients`` of them are waited for. Otherwise, and in a simulation, they are all clients.

        Args:
            clients: all that may train.
            round: the round.
            fewest: number of clients that must be connected whatever the policy.

        Raises:
            MachineError: too few clients were connected within ``federation.timeout``.
        """
        if not self._directory.deployed:
            return clients
        if self._federation.on_client_error == "stop":
            if fewest:
                self.wait(clients, fewest, round)
            return clients
        return self.wait(clients, max(fewest, min(self._federation.min_clients, len(clients))), round)

    def wait(self, clients: Sequence[int], needed: int, round: int) -> Sequence[int]:
        """Wait until so many of the clients are connected, and return those that are. A simulation waits for nobody.

        Raises:
            MachineError: too few clients were connected within ``federation.timeout``.
        """
        if not self._directory.deployed:
            return clients
        timeout, waits = self._federation.timeout, False
        deadline = time.monotonic() + timeout
        while True:
            here = self._directory.connected(clients)
            self._tell(clients, here, round)
            if len(here) >= needed:
                return here
            away = self._names(sorted(set(clients) - set(here)))
            if time.monotonic() > deadline:
                raise MachineError(
                    "federation.timeout",
                    timeout,
                    f"{needed} connected clients within so many seconds in round {round}, {len(here)} were; "
                    f"not connected: {away}",
                    "start their SuperNodes, then resume the run: all completed rounds are kept",
                )
            if not waits:
                waits = True
                log.warning("round %d waits for %d of these clients: %s", round, needed - len(here), away)
            time.sleep(_PAUSE)

    def _tell(self, clients: Sequence[int], here: Sequence[int], round: int) -> None:
        away = set(clients) - set(here)
        gone, back = away - self._away, self._away & set(here)
        self._away = (self._away | away) - back
        for client in sorted(gone | back):
            name = self._directory.profile(client).name
            self._tracker.emit("connection", round=round, client=name, connected=client in back)

    def _names(self, clients: Sequence[int]) -> str:
        names = [self._directory.profile(client).name for client in clients[:_NAMED]]
        return ", ".join(names) + (f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else "")
