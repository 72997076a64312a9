"""Which clients share a dispatch and which go first: longest processing time first, on costs measured in the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_LARGEST_CHUNK = 32
_CHUNKS_PER_WORKER = 4  # so that the last ones to finish do not leave the others idle for long
_LARGEST_MEASURED_CHUNK = 256
LONGEST_CHUNK = 20.0
"""Seconds of work that a dying worker may take with it."""
_FORGET = 0.3  # weight of the newest chunk in a rate: a method's stages may differ in cost


class Span(NamedTuple):
    """One client's message at work.

    Args:
        client: whose.
        kind: type of the message, such as ``train``.
        began: seconds since the epoch, on the clock of the machine it ran on.
        seconds: how long it took.
    """

    client: int
    kind: str
    began: float
    seconds: float


class CostModel:
    """Seconds per unit of work (a batch, where the server says how many) of every kind of message, as measured."""

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def learn(self, kind: str, units: float, seconds: float) -> None:
        """Take note of what a chunk of messages took."""
        if units > 0:
            rate = seconds / units
            self._rates[kind] = (1 - _FORGET) * self._rates.get(kind, rate) + _FORGET * rate

    def seconds(self, kind: str, units: float) -> float | None:
        """What so much work takes; None before any of its kind was measured."""
        rate = self._rates.get(kind)
        return None if rate is None else rate * units


def plan_chunks(units: Sequence[float], total: float | None, workers: int, overhead: float) -> list[list[int]]:
    """Divide messages into chunks, in the order in which free workers take them.

    The most work comes first, so that what is left at the end is small enough to even the workers out (Graham 1969).
    Where it is known how long the work takes, chunks begin with half of every worker's share and shrink with what is
    left, to a thirty-second of a share or eight times what a chunk costs by itself. Work that more chunks would make
    dearer than they could even out is one chunk for each worker.

    Args:
        units: work of each message.
        total: seconds of all of it, None where unknown: chunks are then of equal numbers.
        workers: that take the chunks.
        overhead: seconds a chunk costs beside its messages.

    Returns:
        Positions in `units`, by chunk.
    """
    order = sorted(range(len(units)), key=lambda place: -units[place])  # stable: equal work stays in order
    if total is None or not sum(units) > 0:
        size = min(max(len(units) // (_CHUNKS_PER_WORKER * workers), 1), _LARGEST_CHUNK)
        return [order[start : start + size] for start in range(0, len(order), size)]
    rate = total / sum(units)
    least = max(total / (32 * workers), 8 * overhead)
    one_each = total / workers < 50 * overhead
    left, chunks, filled = total, list[list[int]](), math.inf
    limit = 0.0
    for place in order:
        cost = rate * units[place]
        if filled + cost > limit * (1 + 1e-9) or len(chunks[-1]) >= _LARGEST_MEASURED_CHUNK:
            share = left / max(workers - len(chunks), 1) if one_each else max(left / (2 * workers), least)
            limit, filled = min(share, LONGEST_CHUNK), 0.0
            chunks.append([])
        chunks[-1].append(place)
        filled += cost
        left -= cost
    return chunks
