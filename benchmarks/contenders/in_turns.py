"""FedLab inline and the bare loop in one process, client by client in turns.

Where the memory of a process happens to lie makes it several per cent faster or slower for as long as it lives. Here
that falls on both halves alike, and so does every change in the speed of the machine. Before each client that FedLab
trains, the bare loop trains the same client on the same samples, in the same order and with the same dropout masks.
Both halves must arrive at the same weights, or the contender stops.
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
from fedlab.engine import inline
from fedlab.engine.execution import ChunkResult
from fedlab.engine.grid import Chunk
from fedlab.engine.inline import InlineGrid
from fedlab.seeding import derive_seed, torch_generator

TOLERANCE = 1e-4
"""Largest difference between the two halves' weights.

They differ in the last bits of the inputs, which FedLab scales from [0, 1] to N(0, 1), and of the sums, which are exact
in FedLab only: by less than 1e-6 after a few rounds. Other batches or other dropout masks make a difference of 1e-2 and
more.
"""
_SEED = 0  # the default of a configuration's `seed`


class DifferentWorkError(RuntimeError):
    """The two halves do not do the same work, so that their times must not be compared."""


class InTurns(InlineGrid):
    """FedLab's inline grid, which lets the bare loop train each client first.

    Args:
        work: what every client does.
        pace: keeps the times of the two halves apart.
        factory: see `InlineGrid`.
        arguments: further ones of `InlineGrid`.

    Attributes:
        loop: the bare loop; its clients hold the same samples as FedLab's.
    """

    def __init__(self, work: Work, pace: DividedPace, factory: ClientAppFactory, *arguments: Any, **named: Any) -> None:
        super().__init__(factory, *arguments, **named)
        parts = factory.setup.federated.partition
        self.loop = Loop(work, np.stack([parts[client].train for client in range(work.clients)]))
        self._pace, self._round, self._ahead = pace, 0, list[int]()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        if not messages:
            return super().send_and_receive(messages, timeout=timeout)
        with self._pace.timed(DividedPace.ASIDE):
            self._round += 1
            self._compare(messages[0])
            self._ahead = sorted(self.client_of(message.metadata.dst_node_id) for message in messages)
        with self._pace.timed(BARE):
            self.loop.begin()
        replies = super().send_and_receive(messages, timeout=timeout)
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
        """Give the loop FedLab's weights to begin with; later ones of its own must equal FedLab's."""
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        names = list(self.loop.server)
        theirs = [torch.from_numpy(array.numpy()) for array in record.values()]
        if self._round == 1:
            self.loop.server = dict(zip(names, theirs, strict=True))
        else:
            check_equal(self.loop, theirs)


def check_equal(loop: Loop, theirs: Iterable[torch.Tensor]) -> float:
    """The largest difference between the loop's weights and FedLab's, which come in the same order.

    Raises:
        DifferentWorkError: it is above `TOLERANCE`.
    """
    pairs = zip(loop.server.values(), theirs, strict=True)
    difference = max(float(np.max(np.abs((mine - other).numpy()))) for mine, other in pairs)
    if not difference <= TOLERANCE:
        raise DifferentWorkError(f"the weights of FedLab and of the bare loop differ by {difference:.2g}")
    return difference


def main(work: Work) -> tuple[fedlab.Run, Loop]:
    """The run, and the loop as it was after the last round."""
    pace, grids = DividedPace(work.rounds, rest=INLINE), list[InTurns]()

    def grid(*arguments: Any, **named: Any) -> InTurns:
        grids.append(InTurns(work, pace, *arguments, **named))
        return grids[-1]

    with patch.object(inline, "InlineGrid", grid):
        run = ours.simulate(work, pace, "inline")
    return run, grids[0].loop
