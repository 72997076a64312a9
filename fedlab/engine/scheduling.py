"""How messages are divided into chunks, and which chunk goes first.

The longest work goes first, and how long it takes is measured during the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_LARGEST_CHUNK = 32
_CHUNKS_PER_WORKER = 4  # several, so that the workers that finish first do not wait long for the last one
_LARGEST_MEASURED_CHUNK = 256
LONGEST_CHUNK = 20.0
"""Seconds of work that may be lost when a worker dies."""
_FORGET = 0.3  # weight of the newest chunk in a rate: a method's stages may differ in cost


class Span(NamedTuple):
    """The time in which one client handled one message.

    Args:
        client: the client.
        kind: type of the message, such as ``train``.
        began: seconds since the epoch, by the clock of the machine on which it was handled.
        seconds: how long that took.
    """

    client: int
    kind: str
    began: float
    seconds: float


class CostModel:
    """How long a unit of work takes, as measured for every type of message.

    A unit is a batch if the server says how many batches a message is, and a message otherwise.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def learn(self, kind: str, units: float, seconds: float) -> None:
        """Take note of how long a chunk of messages took."""
        if units > 0:
            rate = seconds / units
            self._rates[kind] = (1 - _FORGET) * self._rates.get(kind, rate) + _FORGET * rate

    def seconds(self, kind: str, units: float) -> float | None:
        """How long work takes; None before any work of its kind was measured."""
        rate = self._rates.get(kind)
        return None if rate is None else rate * units


def plan_chunks(units: Sequence[float], total: float | None, workers: int, overhead: float) -> list[list[int]]:
    """Divide messages into chunks, in the order in which free workers take them.

    The largest work comes first, so that the chunks at the end are small and all workers finish at about the same time
    (Graham 1969). If it is known how long the work takes, the first chunk is half of a worker's share, and chunks
    shrink with what is left, down to a thirty-second of a share or to eight times their overhead. If more chunks would
    cost more time than they could save, there is one chunk for each worker.

    Args:
        units: work of each message, in any unit.
        total: seconds that all of it takes; None if that is unknown, and chunks then have equal numbers of messages.
        workers: number of workers that take the chunks.
        overhead: seconds that a chunk costs beside its messages.

    Returns:
        Positions in `units`, by chunk.
    """
    by_size = sorted(range(len(units)), key=lambda place: -units[place])  # equal work stays in order
    if total is None or not sum(units) > 0:
        size = min(max(len(units) // (_CHUNKS_PER_WORKER * workers), 1), _LARGEST_CHUNK)
        return [by_size[start : start + size] for start in range(0, len(by_size), size)]
    rate = total / sum(units)
    least = max(total / (32 * workers), 8 * overhead)
    one_each = total / workers < 50 * overhead
    left, chunks, filled = total, list[list[int]](), math.inf
    limit = 0.0
    for place in by_size:
        cost = rate * units[place]
        if filled + cost > limit * (1 + 1e-9) or len(chunks[-1]) >= _LARGEST_MEASURED_CHUNK:
            share = left / max(workers - len(chunks), 1) if one_each else max(left / (2 * workers), least)
            limit, filled = min(share, LONGEST_CHUNK), 0.0
            chunks.append([])
        chunks[-1].append(place)
        filled += cost
        left -= cost
    return chunks
