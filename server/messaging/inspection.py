"""Checks of what clients send, before it is used.

A reply that fails a check is an error of the client that sent it, like an exception on the client, and the other
replies count. The checks are the same in a simulation, where they run in the process that has run the client, and in a
deployment, where the server runs them. The messages of errors name records, arrays and shapes, and no values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedlab.errors import FedLabError
from fedlab.protocol.compression import Chain
from fedlab.protocol.effort import Effort
from fedlab.protocol.encoding import ENCODED, ENCODING, SENT, expand, sent_bytes
from fedlab.protocol.messages import (
    ARRAYS,
    CONFIG,
    EFFORT,
    EXTRAS,
    METRICS,
    MISSING,
    NUM_EXAMPLES,
    PERSONALIZED,
    REDUCE,
    SPENT,
    STATE,
    SUMS,
    TIMING,
    VALIDATED,
    VALIDATION,
    WITHHELD,
    NdArray,
    array_record,
    config_record,
    metric_record,
    required,
    to_numpy,
    to_record,
)
from fedlab.protocol.sums import peak_of, range_limit
from fedlab.server.messaging.replies import timings_of, withheld_groups

_WORK = frozenset({ARRAYS, METRICS, EXTRAS, ENCODED, ENCODING, SENT, WITHHELD, SPENT, EFFORT, TIMING, STATE})
DECLARED = {
    "prepare": _WORK - {ARRAYS, ENCODED, ENCODING},
    "train": _WORK,
    "evaluate": frozenset({SUMS, PERSONALIZED, METRICS, TIMING, VALIDATION, VALIDATED}),
    "probe": frozenset({SUMS}),
}
"""The records that a client may send in each phase. `MISSING` takes the place of all of them."""

_SMALL = 2**20
"""Bytes of all records of a reply that are no arrays: names and numbers, of which a client has a few dozen."""
_MOST = 2**53
"""No count is larger: up to here every whole number is a float64."""


@dataclass(frozen=True)
class Training:
    """What a round of training expects of the clients beside what every phase does.

    Args:
        groups: exchange group of each tensor that is averaged, by its name. A client may withhold whole groups.
        returned: names of further arrays that were sent and must come back, such as SCAFFOLD's control variates.
        metrics: metrics that the strategy computes with: the largest value of each, by name. The smallest is 0.
        chain: the run's compression.
        averaged: whether exact sums are formed, whose range limits the values.
        summed: whether the engine forms the sum where this check runs, if the message asks for it. The sum then checks
            the values as it reads them.
        withholdable: groups that a client may withhold, because the method decides it or needs an asset for them.
        private: whether each client must state what privacy its steps have cost.
    """

    groups: Mapping[str, str]
    chain: Chain
    returned: frozenset[str] = frozenset()
    metrics: Mapping[str, float] = field(default_factory=dict)
    averaged: bool = True
    summed: bool = False
    withholdable: frozenset[str] = frozenset()
    private: bool = False
    _limits: dict[tuple[int, str], float] = field(default_factory=dict, repr=False)

    def check(self, sent: RecordDict, content: RecordDict) -> None:
        """Check the arrays of a reply, and replace its compressed updates by the arrays they stand for.

        Args:
            sent: content of the message that the client was sent.
            content: content of the reply, which is changed.

        Raises:
            FedLabError: the reply cannot be used.
        """
        given = array_record(sent, ARRAYS)
        given = ArrayRecord() if given is None else given
        expand(content, given, self.chain)
        withheld = withheld_groups(content)
        if unknown := sorted(withheld - set(self.groups.values())):
            raise FedLabError(f"the client withholds the group {shown(unknown[0])}, which is not averaged")
        if kept := sorted(withheld - self.withholdable):
            raise FedLabError(f"the client withholds the group {shown(kept[0])}, which every client has to send")
        record = array_record(content, ARRAYS)
        arrays = {} if record is None else to_numpy(record)
        config = config_record(sent, CONFIG)
        summed = self.summed and config is not None and REDUCE in config
        self._check_arrays(arrays, given, values=not summed)
        wanted = {name for name, group in self.groups.items() if group not in withheld} | self.returned
        if missing := sorted(wanted - arrays.keys()):
            raise FedLabError(f"the reply lacks {len(missing)} of {len(wanted)} arrays, such as {missing[0]!r}")
        if extra := sorted(arrays.keys() & self.groups.keys() - wanted):
            raise FedLabError(f"the reply holds the array {extra[0]!r} of a group that it says it withholds")
        if record is not None and not all(isinstance(array, NdArray) for array in record.values()):
            content[ARRAYS] = to_record(arrays)  # decoded once; what follows reads the arrays as they are
        metrics = required(metric_record, content, METRICS)
        for name, most in sorted(self.metrics.items()):
            value = metrics.get(name)
            if not isinstance(value, int | float) or not 0 <= value <= most:
                raise FedLabError(f"the metric {name!r} is missing or no number from 0 to {most:g}")
        _check_spent(content, self.private)
        groups = {*self.groups.values(), "algorithm"}
        for group, size in (sent_bytes(content) or {}).items():
            if group not in groups or not 0 <= size <= _MOST:
                raise FedLabError(f"the record {SENT!r} holds {shown(group)}, expected bytes of an exchange group")

    def _check_arrays(self, arrays: Mapping[str, np.ndarray], sent: ArrayRecord, *, values: bool) -> None:
        start = to_numpy(sent)
        for name, array in arrays.items():
            if name not in start:
                raise FedLabError(f"the reply holds an array {shown(name)} that the client was not sent")
            like = start[name]
            if (array.dtype, array.shape) != (like.dtype, like.shape):
                raise FedLabError(
                    f"the array {name!r} comes as {array.dtype}{list(array.shape)}, "
                    f"expected {like.dtype}{list(like.shape)}"
                )
            if values and array.dtype.kind == "f" and array.size:
                limit = self._limit(sent, name, like)
                if not peak_of(array) < limit:
                    below = f" below {limit:g}" if math.isfinite(limit) else ""
                    raise FedLabError(
                        f"the array {name!r} holds values that are not finite numbers{below}; the client's training "
                        "has most likely diverged: lower training.lr or set training.clip_norm"
                    )

    def _limit(self, sent: ArrayRecord, name: str, like: np.ndarray) -> float:
        """The limit of a tensor's values, computed once for all clients that were sent the same arrays."""
        if not self.averaged:
            return math.inf
        key = (id(sent), name)
        if key not in self._limits:
            self._limits[key] = range_limit(like)
        return self._limits[key]


@dataclass(frozen=True)
class Expected:
    """What the clients may answer in one phase of a round. It can be pickled, because workers of an engine check too.

    Args:
        phase: ``prepare``, ``train``, ``evaluate`` or ``probe``.
        examples: largest number of examples that each client may state, by client, which is what its profile says; a
            client that is missing may state any number.
        most_bytes: bytes of all arrays of a reply beside those of the network state.
        training: what a round of training expects besides; None in the other phases.
    """

    phase: str
    examples: Mapping[int, int]
    most_bytes: int
    training: Training | None = None

    def __call__(self, client: int, sent: RecordDict, reply: Message) -> None:
        """Check the reply of a client.

        Args:
            client: who has sent it.
            sent: content of the message that it was sent.
            reply: what it has sent. Compressed updates in it are replaced by the arrays they stand for.

        Raises:
            FedLabError: the reply cannot be used.
        """
        content = reply.content
        check_declared(self.phase, content)
        if MISSING in content:
            check_missing(content)
            return
        check_bytes(content, self.most_bytes)
        if self.training is not None:
            self.training.check(sent, content)
        if self.phase in ("evaluate", "probe"):
            _check_sums(content, SUMS)
        if VALIDATION in content or VALIDATED in content:
            _check_sums(content, VALIDATION)
            _check_number(content, VALIDATED, None)
        if PERSONALIZED in content:
            _check_sums(content, PERSONALIZED)
        if self.phase != "probe":
            check_examples(content, self.examples.get(client))
            _check_timings(content)
        if self.phase in ("prepare", "train"):
            _check_facts(content)


def check_declared(phase: str, content: RecordDict) -> None:
    """Refuse records that no client sends in a phase, such as one that poses as a sum of the engine.

    Raises:
        FedLabError: there is such a record.
    """
    known = frozenset({MISSING}) if MISSING in content else DECLARED[phase]
    if extra := sorted(set(content) - known):
        raise FedLabError(f"the reply holds a record {shown(extra[0])}, which no client sends in this phase")


def check_missing(content: RecordDict) -> None:
    """Check the record by which a client says that it lacks something.

    Raises:
        FedLabError: it does not say what.
    """
    if not set(required(config_record, content, MISSING)) <= {"shared", "state"}:
        raise FedLabError(f"the record {MISSING!r} holds something else than what a client can lack")


def check_bytes(content: RecordDict, most: int) -> None:
    """Refuse a reply that is larger than any client's work is, or whose names would write to a terminal.

    Args:
        content: of the reply.
        most: bytes of all arrays beside those of the network state, whose shapes are checked one by one.

    Raises:
        FedLabError: there are more bytes, or a name cannot be printed.
    """
    large = small = 0
    for key, record in content.items():
        if odd := next((name for name in record if not name.isprintable()), None):
            raise FedLabError(f"the record {key!r} holds the name {shown(odd)}, which cannot be printed")
        if isinstance(record, ArrayRecord):
            sizes = [a.view().nbytes if isinstance(a, NdArray) else len(a.data) for a in record.values()]
            large += sum(sizes) if key not in (ARRAYS, ENCODED) else 0
            small += sum(len(name) for name in record)
        else:
            small += sum(len(name) + _bytes_of(value) for name, value in record.items())
    if large > most:
        raise FedLabError(
            f"the reply holds {large / 2**20:.0f} MiB beside the network state, more than federation.reply_limit = "
            f"{most // 2**20} MiB"
        )
    if small > _SMALL:
        raise FedLabError(f"the names and numbers in the reply take {small / 2**20:.0f} MiB, expected at most 1 MiB")


def _bytes_of(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_bytes_of, value))
    return len(value) if isinstance(value, str | bytes) else 8


def check_examples(content: RecordDict, most: int | None) -> None:
    """Check the number of examples of a reply.

    Args:
        content: of the reply.
        most: the number that the client has stated in its profile; None if it has stated none.

    Raises:
        FedLabError: it is missing, no whole number, negative, or larger than `most`.
    """
    _check_number(content, METRICS, most)


def _check_number(content: RecordDict, key: str, most: int | None) -> None:
    number = required(metric_record, content, key).get(NUM_EXAMPLES)
    if not isinstance(number, int | float) or not (number >= 0 and float(number).is_integer() and number <= _MOST):
        raise FedLabError(f"the metric {NUM_EXAMPLES!r} is missing or no whole number ≥ 0")
    if most is not None and number > most:
        raise FedLabError(f"the metric {NUM_EXAMPLES!r} is larger than the number that the client's profile states")


def _check_sums(content: RecordDict, key: str) -> None:
    """Check the sums in the record `key`, which a client has counted on its samples."""
    record = required(array_record, content, key)
    sums = to_numpy(record)
    for name, values in sums.items():
        if values.dtype.kind not in "fiub":
            raise FedLabError(f"the sum {shown(name)} comes as {values.dtype}, expected numbers")
    if not all(isinstance(array, NdArray) for array in record.values()):
        content[key] = to_record(sums)


def _check_facts(content: RecordDict) -> None:
    """Read the small records of a client's work once, so that what cannot be read is an error of this client."""
    effort, state = (config_record(content, key) for key in (EFFORT, STATE))
    version = 0 if state is None else state.get("version")
    if not isinstance(version, int) or not 0 <= version < 2**31:
        raise FedLabError(f"the record {STATE!r} holds no version")
    if effort is not None:
        read = Effort.of(dict(effort))
        counts = (read.batches, read.skipped, read.missing)
        if not all(0 <= count <= _MOST for count in counts) or not read.reason.isprintable():
            raise FedLabError(f"the record {EFFORT!r} holds counts that are no counts")
    extras = array_record(content, EXTRAS)
    if extras is None:
        return
    results = to_numpy(extras)
    for name, values in results.items():
        if values.dtype.kind not in "fiubc":
            raise FedLabError(f"the result {shown(name)} comes as {values.dtype}, expected numbers")
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            raise FedLabError(f"the result {shown(name)} holds values that are not finite numbers")
    if not all(isinstance(array, NdArray) for array in extras.values()):
        content[EXTRAS] = to_record(results)


def _check_timings(content: RecordDict) -> None:
    for name, (seconds, count) in timings_of(content).items():
        if not (math.isfinite(seconds) and seconds >= 0 and 0 <= count <= _MOST):
            raise FedLabError(f"the record {TIMING!r} holds {shown(name)}, expected seconds and a count")


def _check_spent(content: RecordDict, needed: bool) -> None:
    record = config_record(content, SPENT)
    if record is None and not needed:
        return
    spent = required(config_record, content, SPENT)
    for name, most in (("rate", 1.0), ("noise_multiplier", 1e9), ("steps", float(_MOST))):
        value = spent.get(name)
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise FedLabError(f"the record {SPENT!r} holds no {name!r} from 0 to {most:g}")


def reason_of(problem: Exception) -> str:
    """What to say of a reply that could not be read. The text of an exception that is not FedLab's may show values."""
    if isinstance(problem, FedLabError):
        return str(problem)
    return f"the reply cannot be read ({type(problem).__name__})"


def printable(text: str, most: int = 20_000) -> str:
    """The end of a text that a client has sent, without anything that a terminal would obey."""
    kept = text[-most:] if len(text) <= most else f"…{text[-most:]}"
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in kept)


def shown(name: object, most: int = 60) -> str:
    """A name that came with a reply, in quotes, without anything a terminal would obey, and shortened."""
    text = repr(str(name))
    return text if len(text) <= most else f"{text[: most - 1]}…"
