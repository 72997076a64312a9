"""What the server tells the clients in every phase of a round, beside tensors and the strategy's own settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Instructions:
    """The instructions of one phase of one round.

    Args:
        round: the round, from 1; 0 before the first.
        rounds: number of rounds of the run.
        plan: the method's plan for the round.
        shared: version by name of every server tensor that the clients must hold.
        frozen: hash of the frozen network state, which must be the same on all clients.
        keep_for: rounds from whose checkpoints the run may be resumed. Clients keep their states as of these rounds.
        steps: largest number of local steps, by client id as text, for the clients that have to stop early.
        saved: round under which a client saves its state; None is `round`. Only asynchronous training sets it.
        kept: version of its own state from which a client of a deployment goes on, the last one that came with a reply
            that the server has used; -1 if there is none. None in a simulation, where the engine keeps the versions.
    """

    round: int
    rounds: int
    plan: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)
    frozen: str = ""
    keep_for: tuple[int, ...] = ()
    steps: Mapping[str, int] = field(default_factory=dict)
    saved: int | None = None
    kept: int | None = None

    def to_json(self) -> str:
        """The instructions as JSON. Equal instructions give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Instructions:
        """The reverse of `to_json`."""
        found = json.loads(text)
        return cls(**{**found, "keep_for": tuple(found["keep_for"])})
