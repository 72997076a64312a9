"""What the sources that make their samples have in common: nothing of them can be missing."""

from __future__ import annotations

from typing import Generic, TypeVar

from fedlab.config import Section

S = TypeVar("S", bound=Section)


class MadeSource(Generic[S]):
    """Base of the sources that make their samples.

    Args:
        settings: those of the source.
    """

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def missing(self) -> str | None:
        """Nothing: all samples are made on this machine."""
        return None


def seed_of(data_seed: int | None, seed: int) -> int:
    """The seed of the samples: that of the setting ``data_seed``, or the run's where it is null."""
    return seed if data_seed is None else data_seed
