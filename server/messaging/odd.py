"""Replies that do not fit most clients': what no single reply shows, and what would spoil a sum over the clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flwr.app import Message

from fedlab.protocol.messages import (
    EXTRAS,
    METRICS,
    NUM_EXAMPLES,
    PERSONALIZED,
    SUMS,
    VALIDATION,
    array_record,
    metric_record,
    to_numpy,
)
from fedlab.server.messaging.inspection import shown

Arrays = Mapping[str, np.ndarray]


def odd_replies(phase: str, replies: Sequence[Message], names: Sequence[str]) -> dict[int, str]:
    """Find the replies that differ from those of most clients, so that they cannot be used together.

    Sums have the same shapes on all clients and are finite on all of them or on none. Those of an evaluation also have
    the same names on all clients with test samples. Results that a method sends beside the network state may differ in
    size from client to client, but not in the number of dimensions or the kind of numbers.

    Args:
        phase: as in `fedlab.server.messaging.inspection.Expected`.
        replies: those of all clients that have done their work.
        names: of these clients.

    Returns:
        What is wrong, by position of the reply. What half of the clients have, and the other half have not, is no error
        of either half.
    """
    if phase not in ("evaluate", "probe"):
        return _odd(_held(replies, EXTRAS), names, "result", "", _form)
    after, held = _held(replies, PERSONALIZED), _held(replies, VALIDATION)
    sums: list[Arrays] = [
        {**own, **{f"{PERSONALIZED} {name}": values for name, values in adapted.items()}}
        for own, adapted in zip(_held(replies, SUMS), after, strict=True)
    ]
    odd = _odd_names([None if _empty(reply) else found for reply, found in zip(replies, sums, strict=True)])
    odd |= _odd_names([found or None for found in held])
    if phase == "probe":  # a client without samples of a set has no sums of the probes on it
        odd = {}
    unlike: dict[int, str] = {}
    for found, what in ((held, "sum on validation samples"), (sums, "sum")):
        unlike |= {**_odd(found, names, what, "", _finiteness), **_odd(found, names, what, "the shape ", _shape)}
    return {**unlike, **odd}


def _held(replies: Sequence[Message], key: str) -> list[Arrays]:
    records = [array_record(reply.content, key) for reply in replies]
    return [{} if record is None else to_numpy(record) for record in records]


def _empty(reply: Message) -> bool:
    record = metric_record(reply.content, METRICS)
    return record is not None and not record.get(NUM_EXAMPLES)


def _odd(
    found: Sequence[Arrays], names: Sequence[str], what: str, kind: str, trait: Callable[[np.ndarray], str]
) -> dict[int, str]:
    odd: dict[int, str] = {}
    for name in sorted({name for arrays in found for name in arrays}):
        have = {place: trait(arrays[name]) for place, arrays in enumerate(found) if name in arrays}
        usual, count = Counter(have.values()).most_common(1)[0]
        for place, value in have.items() if 2 * count > len(have) else ():
            if value != usual:
                other = next(names[of] for of, found_there in have.items() if found_there == usual)
                told = f"the {what} {shown(name)} of client {names[place]!r} has {kind}{value}, that of client"
                odd.setdefault(place, f"{told} {other!r} has {usual}, which most clients' has too")
    return odd


def _odd_names(found: Sequence[Arrays | None]) -> dict[int, str]:
    """The replies that lack a sum which most have, or hold one which most lack. None are clients without samples."""
    counting = {place: arrays for place, arrays in enumerate(found) if arrays is not None}
    odd: dict[int, str] = {}
    for name in sorted({name for arrays in counting.values() for name in arrays}):
        having = {place for place, arrays in counting.items() if name in arrays}
        lacking = counting.keys() - having
        if 2 * len(having) > len(counting):
            odd |= dict.fromkeys(lacking, f"the reply lacks the sum {shown(name)}, which most clients send")
        elif 2 * len(lacking) > len(counting):
            odd |= dict.fromkeys(having, f"the reply holds the sum {shown(name)}, which most clients do not send")
    return odd


def _shape(values: np.ndarray) -> str:
    return str(values.shape)


def _finiteness(values: np.ndarray) -> str:
    return "finite values" if np.isfinite(values).all() else "NaN or infinite values"


def _form(values: np.ndarray) -> str:
    return f"{values.ndim} dimensions of the kind {values.dtype.kind!r}"
