"""The floor of several workers: as many bare loops at once, each in a process of its own with a share of the clients.

Two busy cores are slower than one: they share caches, memory and the machine's clock. So what two workers cost is held
against two loops that run at the same time, and not against one that has the machine to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from benchmarks.contenders.bare import Loop
from benchmarks.pace import Pace
from benchmarks.work import Work


@dataclass(frozen=True)
class Share:
    """What one of the loops does in every round.

    Args:
        clients: those it chooses from.
        cohort: how many of them it trains.
    """

    clients: range
    cohort: int


def divided(work: Work, loops: int) -> list[Share]:
    """Equal shares of the federation, one for each loop; together they have its clients and its cohort."""
    return [
        Share(
            range(work.clients * loop // loops, work.clients * (loop + 1) // loops),
            work.cohort * (loop + 1) // loops - work.cohort * loop // loops,
        )
        for loop in range(loops)
    ]


def serve(connection: Connection, work: Work, share: Share) -> None:
    """A process of one loop: a round for every message, answered with the number of clients that were trained.

    Args:
        connection: to the process that counts the rounds; the loop ends when it is closed.
        work: what every client does.
        share: this loop's part of it.
    """
    torch.set_num_threads(1)
    torch.manual_seed(share.clients.start)
    loop = Loop(work, *work.of_clients(share.clients))
    connection.send(0)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        loop.round(share.cohort)
        connection.send(share.cohort)


def main(work: Work, loops: str) -> None:
    """The loops; a round is over when all of them have finished theirs."""
    context = get_context("spawn")
    connections: list[Connection] = []
    for share in divided(work, int(loops)):
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, work, share), daemon=True).start()
        there.close()  # so that a loop that ends early is noticed here
        connections.append(here)
    for connection in connections:
        connection.recv()
    pace = Pace(work.rounds)
    while pace.tick():
        for connection in connections:
            connection.send("a round")
        trained = sum(connection.recv() for connection in connections)
        if trained != work.cohort:
            raise RuntimeError(f"the loops trained {trained} clients in a round: expected {work.cohort}")
    for connection in connections:
        connection.close()
