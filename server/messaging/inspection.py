"""Checks of what clients send, before it is used.

A reply that fails a check is an error of the client that sent it, like an exception on the client, and the other
replies count. The messages of errors name records, arrays and shapes, and no values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedlab.errors import FedLabError
from fedlab.protocol.effort import Effort
from fedlab.protocol.encoding import ENCODED, ENCODING, SENT, expand, sent_bytes
from fedlab.protocol.messages import (
    ARRAYS,
    EFFORT,
    EXTRAS,
    METRICS,
    MISSING,
    NUM_EXAMPLES,
    SPENT,
    STATE,
    SUMS,
    TIMING,
    WITHHELD,
    array_record,
    config_record,
    metric_record,
    required,
    to_numpy,
    to_record,
)
from fedlab.protocol.sums import peak_of, range_limit
from fedlab.server.messaging.replies import timings_of, withheld_groups

Inspect = Callable[[int, Message], None]
"""Checks the reply of a client and raises a FedLabError if it cannot be used."""

_WORK = frozenset({ARRAYS, METRICS, EXTRAS, ENCODED, ENCODING, SENT, WITHHELD, SPENT, EFFORT, TIMING, STATE})
DECLARED = {
    "prepare": _WORK - {ARRAYS, ENCODED, ENCODING},
    "train": _WORK,
    "evaluate": frozenset({SUMS, METRICS, TIMING}),
    "probe": frozenset({SUMS}),
}
"""The records that a client of a deployment may send in each phase. `MISSING` takes the place of all of them."""


@dataclass(frozen=True)
class Expected:
    """What the clients of a round of training send.

    Args:
        sent: the arrays that each client was sent, by client.
        groups: exchange group of each tensor that is averaged, by its name. A client may withhold whole groups.
        averaged: whether the server forms exact sums, whose range limits the values.
        chain: text of the run's chain of compressors, which a client must not choose.
        examples: returns the number of examples that a client has stated in its profile. None if the engine has already
            formed the sums, as in a simulation.
    """

    sent: Mapping[int, ArrayRecord | None]
    groups: Mapping[str, str]
    averaged: bool
    chain: str
    examples: Callable[[int], int] | None
    _limits: dict[tuple[int, str], float] = field(default_factory=dict)

    def check(self, client: int, reply: Message) -> None:
        """Check the reply of a client, and replace its compressed updates by the arrays they stand for.

        Raises:
            FedLabError: the reply cannot be used.
        """
        content, sent = reply.content, self.sent.get(client)
        how = config_record(content, ENCODING)
        if how is not None and how.get("chain") != self.chain:
            raise FedLabError("the reply is compressed in another way than exchange.compression says")
        expand(content, sent)
        withheld = withheld_groups(reply)
        unknown = sorted(withheld - set(self.groups.values()))
        if unknown:
            raise FedLabError(f"the client withholds the group {unknown[0]!r}, which is not averaged")
        record = array_record(content, ARRAYS)
        if record is not None:
            arrays = to_numpy(record)
            self._check_arrays(arrays, ArrayRecord() if sent is None else sent)
            if self.examples is not None:  # decoded once; what follows reads the arrays without decoding them again
                content[ARRAYS] = to_record(arrays)
        if self.examples is not None:
            held = set() if record is None else set(record)
            wanted = {name for name, group in self.groups.items() if group not in withheld}
            if missing := sorted(wanted - held):
                raise FedLabError(f"the reply lacks {len(missing)} of {len(wanted)} arrays, such as {missing[0]!r}")
            if extra := sorted(held & set(self.groups) - wanted):
                raise FedLabError(f"the reply holds the array {extra[0]!r} of a group that it says it withholds")
            check_examples(content, self.examples(client))
        _check_facts(reply)

    def _check_arrays(self, arrays: Mapping[str, np.ndarray], sent: ArrayRecord) -> None:
        start = to_numpy(sent)
        for name, values in arrays.items():
            if name not in start:
                raise FedLabError(f"the reply holds an array {_shown(name)} that the client was not sent")
            like = start[name]
            if (values.dtype, values.shape) != (like.dtype, like.shape):
                raise FedLabError(
                    f"the array {name!r} comes as {values.dtype}{list(values.shape)}, "
                    f"expected {like.dtype}{list(like.shape)}"
                )
            limit = self._limit(sent, name, like)
            if values.dtype.kind == "f" and values.size and not peak_of(values) < limit:
                below = f" below {limit:g}" if math.isfinite(limit) else ""
                raise FedLabError(
                    f"the array {name!r} holds values that are not finite numbers{below}; the client's training has "
                    "most likely diverged: lower training.lr or set training.clip_norm"
                )

    def _limit(self, sent: ArrayRecord, name: str, like: np.ndarray) -> float:
        """The limit of a tensor's values, computed once for all clients that were sent the same arrays."""
        if not self.averaged:
            return math.inf
        key = (id(sent), name)
        if key not in self._limits:
            self._limits[key] = range_limit(like)
        return self._limits[key]


def check_declared(phase: str, content: RecordDict) -> None:
    """Refuse records that no client sends in a phase, such as one that poses as a sum of the engine.

    Raises:
        FedLabError: there is such a record.
    """
    lacks = config_record(content, MISSING) is not None
    known = frozenset({MISSING}) if lacks else DECLARED[phase]
    if extra := sorted(set(content) - known):
        raise FedLabError(f"the reply holds a record {_shown(extra[0])}, which no client sends in this phase")


def check_prepared(client: int, reply: Message) -> None:
    """Check the answer of a client of a deployment to the query before round 1."""
    check_examples(reply.content, None)
    _check_facts(reply)


def check_evaluated(client: int, reply: Message) -> None:
    """Check the evaluation that a client of a deployment has sent."""
    check_examples(reply.content, None)
    timings_of(reply)
    check_sums(client, reply)


def check_sums(client: int, reply: Message) -> None:
    """Check the sums that a client of a deployment has counted on its samples."""
    sums = to_numpy(required(array_record, reply.content, SUMS))
    for name, values in sums.items():
        if values.dtype.kind not in "fiub":
            raise FedLabError(f"the sum {_shown(name)} comes as {values.dtype}, expected numbers")
    reply.content[SUMS] = to_record(sums)


CHECKS: Mapping[str, Inspect] = {"prepare": check_prepared, "evaluate": check_evaluated, "probe": check_sums}
"""The checks of the phases in which nothing is trained."""


def check_examples(content: RecordDict, most: int | None) -> None:
    """Check the number of examples of a reply.

    Args:
        content: of the reply.
        most: the number that the client has stated in its profile; None if the number is of other samples.

    Raises:
        FedLabError: it is missing, no whole number, negative, or larger than `most`.
    """
    number = required(metric_record, content, METRICS).get(NUM_EXAMPLES)
    if not isinstance(number, int | float) or not (number >= 0 and float(number).is_integer()):
        raise FedLabError(f"the metric {NUM_EXAMPLES!r} is missing or no whole number ≥ 0")
    if most is not None and number > most:
        raise FedLabError(f"the metric {NUM_EXAMPLES!r} is larger than the number that the client's profile states")


def odd_sums(replies: Sequence[Message]) -> dict[int, str]:
    """Find the replies whose sums have other shapes than those of most replies, so that they cannot be added up.

    Returns:
        What is wrong, by position of the reply. It is empty if no shape is that of most replies.
    """
    shapes = [
        {} if (record := array_record(reply.content, SUMS)) is None else {name: a.shape for name, a in record.items()}
        for reply in replies
    ]
    odd: dict[int, str] = {}
    for name in sorted({name for found in shapes for name in found}):
        counted = Counter(found[name] for found in shapes if name in found).most_common(2)
        if len(counted) == 2 and counted[0][1] > counted[1][1]:
            usual = counted[0][0]
            for place, found in enumerate(shapes):
                if found.get(name, usual) != usual:
                    told = f"the sum {_shown(name)} has the shape {list(found[name])}, most clients' has {list(usual)}"
                    odd.setdefault(place, told)
    return odd


def _check_facts(reply: Message) -> None:
    """Read every small record of a reply once, so that what cannot be read is an error of this client."""
    content = reply.content
    timings_of(reply)
    sent_bytes(content)
    effort, spent, state = (config_record(content, key) for key in (EFFORT, SPENT, STATE))
    version = 0 if state is None else state.get("version")
    if not isinstance(version, int) or version < 0:
        raise FedLabError(f"the record {STATE!r} holds no version")
    if effort is not None:
        Effort.of(dict(effort))
    for name, value in ({} if spent is None else spent).items():
        if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise FedLabError(f"the record {SPENT!r} holds {_shown(name)}, expected a finite number ≥ 0")
    extras = array_record(content, EXTRAS)
    for name, values in ({} if extras is None else to_numpy(extras)).items():
        if values.dtype.kind not in "fiubc":
            raise FedLabError(f"the result {_shown(name)} comes as {values.dtype}, expected numbers")


def reason_of(problem: Exception) -> str:
    """What to say of a reply that could not be read. The text of an exception that is not FedLab's may show values."""
    if isinstance(problem, FedLabError):
        return str(problem)
    return f"the reply cannot be read ({type(problem).__name__})"


def _shown(name: object, most: int = 60) -> str:
    text = repr(str(name))
    return text if len(text) <= most else f"{text[: most - 1]}…"
