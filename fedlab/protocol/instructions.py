"""What the server tells every client of a phase, beside tensors and the strategy's own settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Instructions:
    """One phase of one round.

    Args:
        round: federated round, 0 before the first.
        rounds: rounds of the run.
        plan: the method's `plan` for the round.
        shared: name → version of every server tensor the clients must hold.
        frozen: hash of the frozen network state, the same on all participants.
        keep_for: rounds of the checkpoints that may be resumed from; client states as of then stay.
        steps: local steps at most, by client id as text, of clients that are to stop early.
        saved: round a client's state is kept under, where that is not `round` (asynchronous training).
    """

    round: int
    rounds: int
    plan: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)
    frozen: str = ""
    keep_for: tuple[int, ...] = ()
    steps: Mapping[str, int] = field(default_factory=dict)
    saved: int | None = None

    def to_json(self) -> str:
        """JSON text; equal orders give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Instructions:
        return cls(**json.loads(text))
