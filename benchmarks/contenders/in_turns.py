"""FedLab inline and the bare loop in one process, client by client in turns.

Where the memory of a process happens to lie makes it several per cent faster or slower for as long as it lives. Here
that falls on both halves alike, and so does every change in the speed of the machine. Before each client that FedLab
trains, the bare loop trains the same client from the same weights, with the same batches and the same dropout masks.
Both halves must arrive at the same weights in every round, or the contender stops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import ArrayRecord, Message

import fedlab
from benchmarks.bars import BARE, INLINE
from benchmarks.contenders import ours
from benchmarks.contenders.bare import Loop
from benchmarks.pace import DividedPace
from benchmarks.work import Work
from fedlab.clients.app import ClientAppFactory
from fedlab.data.federated import FederatedData
from fedlab.data.normalize import normalize
from fedlab.engine import Simulation
from fedlab.engine.dispatch import Chunk
from fedlab.engine.execution import ChunkResult, Inspect
from fedlab.engine.grids import inline
from fedlab.engine.grids.inline import InlineGrid
from fedlab.seeding import derive_seed, torch_generator

TOLERANCE = 1e-4
"""Largest difference between the two halves' weights at the end of a round that both began with the same weights.

Only the sums over clients differ, which are exact in FedLab and rounded in the bare loop: by 6e-8 in a round of 50
clients. Other batches and other dropout masks make a difference of more than 1e-3.
"""
_SEED = 0  # the default of a configuration's `seed`


class DifferentWorkError(RuntimeError):
    """The two halves do not do the same work, so that their times must not be compared."""


class InTurns(InlineGrid):
    """FedLab's inline grid, which lets the bare loop train each client first.

    Args:
        work: what every client does.
        pace: keeps the times of the two halves apart.
        simulation: FedLab's clients.
        arguments: further arguments of `InlineGrid`.

    Attributes:
        loop: the bare loop; its clients hold the same samples as FedLab's.
    """

    def __init__(self, work: Work, pace: DividedPace, simulation: Simulation, *arguments: Any, **named: Any) -> None:
        super().__init__(simulation, *arguments, **named)
        factory = simulation.factory
        assert isinstance(factory, ClientAppFactory)
        self.loop = Loop(work, *_samples(factory.setup.federated))
        self._pace, self._round, self._ahead = pace, 0, list[int]()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None, inspect: Inspect | None = None
    ) -> list[Message]:
        messages = list(messages)
        if not messages:
            return super().send_and_receive(messages, timeout=timeout, inspect=inspect)
        with self._pace.timed(DividedPace.ASIDE):
            self._round += 1
            self._compare(messages[0])
            self._ahead = sorted(self.client_of(message.metadata.dst_node_id) for message in messages)
        with self._pace.timed(BARE):
            self.loop.begin()
        replies = super().send_and_receive(messages, timeout=timeout, inspect=inspect)
        with self._pace.timed(BARE):
            self.loop.end()
        return replies

    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        with self._pace.timed(DividedPace.ASIDE):
            (client,) = self._queue[0].clients
            if client != self._ahead.pop(0):
                raise DifferentWorkError(f"FedLab trains client {client}, which is not the next one")
            # what FedLab draws for this client in this round
            torch.manual_seed(derive_seed(_SEED, "global", "client", client, self._round, "train"))
            order = torch_generator(_SEED, "client", client, self._round, "batches", 0, 0)
        with self._pace.timed(BARE):
            self.loop.visit(client, order)
        return super()._collect(timeout)

    def _compare(self, message: Message) -> None:
        """Check that both halves have come to the same weights, and let the loop begin with FedLab's."""
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        theirs = [torch.from_numpy(array.numpy()) for array in record.values()]
        if self._round > 1:
            check_equal(self.loop, theirs)
        self.loop.server = dict(zip(self.loop.server, theirs, strict=True))


def check_equal(loop: Loop, theirs: Iterable[torch.Tensor]) -> float:
    """The largest difference between the loop's weights and FedLab's, which come in the same order.

    Raises:
        DifferentWorkError: it is above `TOLERANCE`.
    """
    pairs = zip(loop.server.values(), theirs, strict=True)
    difference = max(float((mine - other).abs().max()) for mine, other in pairs)
    if not difference <= TOLERANCE:
        raise DifferentWorkError(f"the weights of FedLab and of the bare loop differ by {difference:.2g}")
    return difference


def _samples(federated: FederatedData) -> tuple[np.ndarray, np.ndarray]:
    """Images (clients, samples, 3, 32, 32) and labels (clients, samples) as FedLab's clients have them."""
    train, clients = federated.dataset.train, range(federated.num_clients)
    held = np.stack([federated.partition[client].train for client in clients])
    images = normalize(train["image"][held.ravel()], None, train.domain_names, federated.config)
    return images.reshape(*held.shape, *images.shape[1:]), train["label"][held]


def main(work: Work) -> tuple[fedlab.Run, Loop]:
    """The run, and the loop as it was after the last round."""
    pace, grids = DividedPace(work.rounds, rest=INLINE), list[InTurns]()

    def grid(*arguments: Any, **named: Any) -> InTurns:
        grids.append(InTurns(work, pace, *arguments, **named))
        return grids[-1]

    with patch.object(inline, "InlineGrid", grid):
        run = ours.simulate(work, pace, "inline")
    return run, grids[0].loop
