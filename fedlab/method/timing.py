"""Wall times that a method measures. They are no metrics, because they differ from run to run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

Timings = Mapping[str, tuple[float, int]]
"""For each name, the seconds in all and how often it was measured."""


class Stopwatch:
    """Adds up the wall time of named parts of the work.

    Args:
        device: the device that is computed on. Work that a GPU has not finished yet counts for the part that asked for
            it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._found: dict[str, tuple[float, int]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure what is done in this context."""
        began = self._now()
        yield
        seconds, count = self._found.get(name, (0.0, 0))
        self._found[name] = (seconds + self._now() - began, count + 1)

    @property
    def timings(self) -> dict[str, tuple[float, int]]:
        """What was measured so far."""
        return dict(self._found)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def added(found: Iterable[Timings]) -> dict[str, tuple[float, int]]:
    """The sums of several timings."""
    total: dict[str, tuple[float, int]] = {}
    for timings in found:
        for name, (seconds, count) in timings.items():
            before, often = total.get(name, (0.0, 0))
            total[name] = before + seconds, often + count
    return total
