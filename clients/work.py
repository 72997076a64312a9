"""What a client is asked to do, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedlab.errors import FedLabError
from fedlab.method.timing import Timings
from fedlab.protocol.effort import Effort
from fedlab.protocol.encoding import Encoded
from fedlab.protocol.instructions import Instructions


@dataclass(frozen=True)
class WorkRequest:
    """What a client is asked to do and what it is sent for it; clients of one request differ in their states alone.

    Args:
        instructions: of this phase and round.
        arrays: network state sent by the server.
        shared: server tensors sent this time.
        settings: the strategy's own settings.
    """

    instructions: Instructions
    arrays: Mapping[str, np.ndarray]
    shared: Mapping[str, np.ndarray] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalWork:
    """A client's local training, done.

    Args:
        finish: makes what the client half of the run's algorithm sends (`Correction.finish`).
        seconds: what it took, beside the time since the client was asked.
    """

    finish: Callable[[], tuple[dict[str, Tensor], dict[str, float]]] = lambda: ({}, {})
    seconds: float = 0.0


class MissingError(FedLabError):
    """This machine lacks something that the client needs for its work, which is therefore not begun."""

    what: ClassVar[str]
    """Name of what is missing, in the reply to the server."""


class MissingSharedError(MissingError):
    """This machine lacks the current version of a server tensor; the server sends it again."""

    what = "shared"


class MissingStateError(MissingError):
    """This node lacks the state of its client, or it is damaged; the server decides whether the client starts anew."""

    what = "state"


@dataclass(frozen=True)
class Trained:
    """A client's answer.

    Args:
        arrays: network state to send, views of the resident model.
        results: tensors beside the weights.
        metrics: means of what was logged, by name.
        examples: the client's weight.
        version: of its state.
        withheld: averaged groups it does not contribute to.
        encoded: what compression made of averaged parameters, which `arrays` then lacks.
        spent: what the round cost in privacy of the client's examples; None without such privacy.
        effort: counts of its training steps; None of the query before round 1.
        timings: what the method has measured: seconds and how often, by name.
        other_steps: steps of a whole round on samples other than the client's own, such as synthetic ones; None if it
            trained on its own.
    """

    arrays: dict[str, Tensor]
    results: dict[str, Tensor]
    metrics: dict[str, float]
    examples: int
    version: int | None
    withheld: tuple[str, ...] = ()
    encoded: Encoded | None = None
    spent: Mapping[str, float] | None = None
    effort: Effort | None = None
    timings: Timings = field(default_factory=dict)
    other_steps: int | None = None


@dataclass(frozen=True)
class Evaluated:
    """A client's evaluation.

    Args:
        sums: sufficient statistics, which add up over clients.
        values: metric values computed from them; empty without test samples.
        count: number of test samples.
        timings: what the method has measured: seconds and how often, by name.
        validation: the same statistics of the client's validation samples; empty if there are none.
        validated: number of validation samples.
        personalized: the same statistics after local training on the client's own samples; empty unless
            ``evaluation.personalized`` asks for them.
    """

    sums: Mapping[str, np.ndarray]
    values: Mapping[str, float]
    count: int
    timings: Timings = field(default_factory=dict)
    validation: Mapping[str, np.ndarray] = field(default_factory=dict)
    validated: int = 0
    personalized: Mapping[str, np.ndarray] = field(default_factory=dict)
