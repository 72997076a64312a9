"""What is under way between a grid and its workers: dispatches, and the chunks of messages they are divided into."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from flwr.app import Message, RecordDict

from fedlab.engine import execution
from fedlab.protocol.messages import ARRAYS, array_record, to_numpy
from fedlab.protocol.sums import ExactSum, Reduction

CALL_SECONDS = 2e-3
"""How long it takes to hand a chunk to a worker, whatever the chunk holds."""
# how long it takes to copy one byte of a sum out of a worker and to add it to the other sums
_SECONDS_PER_BYTE = 1.5e-9
# When fewer seconds than these are left to a deadline, every chunk returns its sum at once. A worker that is stopped at
# the deadline then takes no other chunk's sum with it.
_HASTE = 60.0


@dataclass(eq=False)
class Payload:
    """Content that several messages share. It is held once, however many clients it goes to.

    Args:
        content: the records.
        reduction: how the replies' arrays are to be summed; None leaves them in the replies.
        inspect: checks the replies where they are made; None believes them.
    """

    content: RecordDict
    reduction: Reduction | None
    inspect: execution.Inspect | None = None

    @property
    def seconds_of_sum(self) -> float:
        """How long it takes to hand over one sum of the replies."""
        arrays = None if self.reduction is None else array_record(self.content, ARRAYS)
        return _SECONDS_PER_BYTE * sum(values.nbytes for values in to_numpy(arrays).values()) if arrays else 0.0


@dataclass(eq=False)
class Dispatch:
    """Messages that were sent with one call, and what has come back of them so far.

    Args:
        number: counts the dispatches of a grid, in the order of sending.
        position: position of each message in the order of the clients, by the message's id.
        waiting: messages that have no reply yet, by id.
        stop_at_error: after an error, nobody wants the other replies.
        deadline: time by which the replies must be there, on the clock `time.monotonic`; None if they may take as long
            as they like.
        replies: replies so far.
        num_kept: number of further replies that have come, but whose sum is still in a worker.
        failed: whether one of the replies is an error.
        total: sum of the replies' arrays; None if they are not to be summed.
        deaths: number of workers that have died while they ran a chunk of it.
    """

    number: int
    position: dict[str, int]
    waiting: dict[str, Message]
    stop_at_error: bool
    deadline: float | None
    replies: list[Message] = field(default_factory=list)
    num_kept: int = 0
    failed: bool = False
    total: ExactSum | None = None
    deaths: int = 0

    @property
    def keeps_sums(self) -> bool:
        """Whether there is time enough for workers to keep their sums from one chunk to the next."""
        return self.deadline is None or self.deadline - time.monotonic() > _HASTE


@dataclass(eq=False)
class Chunk:
    """Messages with one payload that one worker handles one after the other.

    Args:
        dispatch: the dispatch that the chunk is part of.
        payload: content of the messages.
        messages: in the order in which they are handled.
        attempt: how often the chunk has been given to a worker, this time included.
        units: how much work the messages are, in the unit of `SimulationGrid.measure_by`; 0 if that is not known, and
            then nobody learns from the time they take.
        vectorized: whether its clients train as one batch. The last bits of a result then depend on which clients are
            together in a chunk, so a vectorized chunk is never divided further.
    """

    dispatch: Dispatch
    payload: Payload
    messages: list[Message]
    attempt: int = 1
    units: float = 0.0
    vectorized: bool = False

    @cached_property
    def clients(self) -> frozenset[int]:
        """The clients that the messages go to."""
        return frozenset(execution.client_of(message.metadata.dst_node_id) for message in self.messages)

    def part(self, messages: Sequence[Message]) -> Chunk:
        """The chunk with some of its messages only."""
        return replace(self, messages=list(messages), units=0.0)
