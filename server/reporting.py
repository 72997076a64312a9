"""Tells the tracker of the phases of a round and, at its end, of the round."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fedlab.method.exchange import Exchange
from fedlab.server.ledger import account, payload_bytes
from fedlab.server.messaging.asked import Delivered
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.state import ServerState
from fedlab.tracking import Tracker


class Reporter:
    """Tells the tracker how a run gets on.

    Args:
        tracker: where events go.
        state: what lasts on the server.
        directory: who is who.
        rounds: number of rounds of the run.

    Attributes:
        current: round and name of the present phase.
    """

    def __init__(self, tracker: Tracker, state: ServerState, directory: ClientDirectory, rounds: int) -> None:
        self._tracker, self._state, self._directory, self._rounds = tracker, state, directory, rounds
        self._seconds: dict[str, float] = {}
        self._first, self._began = 1, time.perf_counter()
        self.current = (0, "profile")

    def start(self, first: int) -> None:
        """The rounds begin now, with this one: preparation says nothing about the time the rounds take."""
        self._first, self._began = first, time.perf_counter()

    def start_round(self) -> None:
        """A round begins, whose phases are timed anew."""
        self._seconds = {}

    def progress(self, done: int, total: int) -> None:
        """The engine reports how far the present phase is."""
        round, phase = self.current
        self._tracker.emit("progress", round=round, phase=phase, done=done, total=total)

    @contextmanager
    def phase(self, round: int, phase: str, total: int) -> Iterator[None]:
        """A context for a phase in which `total` clients take part, 0 where the server works alone."""
        began, self.current = time.perf_counter(), (round, phase)
        self._tracker.emit("phase_start", round=round, phase=phase, total=total)
        yield
        seconds = time.perf_counter() - began
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self._tracker.emit("phase_end", round=round, phase=phase, seconds=seconds)

    def round(
        self,
        round: int,
        exchange: Exchange,
        delivered: Delivered,
        results: Mapping[int, Mapping[str, Tensor]],
        train: Mapping[str, float],
        server: Mapping[str, float],
        virtual: float,
    ) -> dict[str, Any]:
        """Tell of a round that is over.

        Args:
            round: its number.
            exchange: what was exchanged.
            delivered: what was delivered.
            results: what clients sent beside the weights, by client id.
            train: means of what the clients logged.
            server: what the server logged.
            virtual: seconds of the round on the virtual clock.

        Returns:
            The fields of the event ``round``.
        """
        state, pace = self._state, (time.perf_counter() - self._began) / (round - self._first + 1)
        received = {client: payload_bytes(sent) for client, sent in results.items()}
        extra = state.strategy.extra_bytes()
        ledger = account(exchange, state.shared, self._directory, delivered, extra, received)
        self._tracker.emit("ledger", round=round, rows=ledger.rows())
        fields: dict[str, Any] = {
            "round": round,
            "rounds": self._rounds,
            "clients": [self._directory.client(reply.metadata.src_node_id) for reply in delivered.answers],
            "train": train,
            "server": server,
            "bytes_down": ledger.down,
            "bytes_up": ledger.up,
            "bytes": ledger.groups(),
            "raw_up": ledger.raw_up(),
            "seconds": dict(self._seconds),
            **state.selector.virtual(virtual),
            "eta_seconds": pace * (self._rounds - round),
            **({"privacy": state.account.spent(round)} if state.account else {}),
        }
        self._tracker.emit("round", **fields)
        return fields
