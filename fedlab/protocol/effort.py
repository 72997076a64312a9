"""Counts of the training steps that a client took in a round, so that missing steps are noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

NO_SAMPLES = "there are no training samples"
NOT_FULL = (
    "training.drop_last leaves out batches that are not full, and training.batch_size is more samples than there are"
)
TOO_FEW = "the method's own sampler finds too few samples for a batch"


@dataclass
class Effort:
    """Counts of one client's round, over all passes of the local training loop.

    Args:
        batches: number of batches drawn.
        skipped: number of these for which ``loss()`` returned no term, so that no step was taken.
        missing: number of batches that ``training.local_steps`` asks for and that could not be drawn.
        reason: why no batch, or no further batch, could be drawn; empty if that did not happen.
    """

    batches: int = 0
    skipped: int = 0
    missing: int = 0
    reason: str = ""

    @property
    def idle(self) -> bool:
        """Whether the training loop was entered and no step was taken in it."""
        return self.skipped == self.batches and (self.batches > 0 or bool(self.reason))

    @property
    def whole(self) -> bool:
        """Whether the client took all the steps it was asked for, which may be none."""
        return not (self.skipped or self.missing or self.reason)

    def fields(self) -> dict[str, Any]:
        """The counts as plain values by name."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Effort:
        """The reverse of `fields`."""
        return cls(int(fields["batches"]), int(fields["skipped"]), int(fields["missing"]), str(fields["reason"]))
