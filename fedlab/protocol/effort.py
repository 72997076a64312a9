"""What a client's round came to in training steps: a result must not seem to stand on steps that nobody took."""

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
        batches: drawn.
        skipped: of those, the ones for which ``loss()`` returned no term, so that no step was taken.
        missing: batches that ``training.local_steps`` asks for and that could not be drawn.
        reason: why no batch, or no further one, could be drawn; "" where that did not happen.
    """

    batches: int = 0
    skipped: int = 0
    missing: int = 0
    reason: str = ""

    @property
    def idle(self) -> bool:
        """The training loop was entered and no step was taken in it."""
        return self.skipped == self.batches and (self.batches > 0 or bool(self.reason))

    @property
    def whole(self) -> bool:
        """All that was asked was done, or nothing was asked."""
        return not (self.skipped or self.missing or self.reason)

    def fields(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Effort:
        """From `fields`."""
        return cls(int(fields["batches"]), int(fields["skipped"]), int(fields["missing"]), str(fields["reason"]))
