"""What is under way between a grid and its workers: dispatches, and the chunks of messages they are divided into."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import Message, RecordDict

from fedlab.engine import execution
from fedlab.protocol.messages import ARRAYS, array_record, to_numpy
from fedlab.protocol.sums import ExactSum, Reduction

CALL_SECONDS = 2e-3
"""What handing a chunk to a worker costs, whatever the chunk holds."""
_SUM_SECONDS = 1.5e-9  # for each byte of a sum: copying it out of a worker and adding it to the others
# seconds to a deadline in which every chunk brings its sum, so that work stopped there takes no other's with it
_HASTE = 60.0


@dataclass(eq=False)
class Payload:
    """Content that several messages share, held once however many clients it goes to."""

    content: RecordDict
    reduction: Reduction | None

    @property
    def seconds_of_sum(self) -> float:
        """What handing over a sum of the replies costs."""
        arrays = None if self.reduction is None else array_record(self.content, ARRAYS)
        return _SUM_SECONDS * sum(values.nbytes for values in to_numpy(arrays).values()) if arrays else 0.0


@dataclass(eq=False)
class Dispatch:
    """Messages that were sent together, and what has come back so far.

    Args:
        number: in the order of sending.
        order: place of each message, by its id.
        waiting: messages without a reply, by id.
        stop_at_error: nobody wants the rest after an error.
        deadline: of the replies, in `time.monotonic`; None for ever.
        replies: so far.
        kept: further replies that have come, but not yet the sum they are part of.
        failed: a reply is an error.
        total: sum of the replies' arrays, if asked for.
    """

    number: int
    order: dict[str, int]
    waiting: dict[str, Message]
    stop_at_error: bool
    deadline: float | None
    replies: list[Message] = field(default_factory=list)
    kept: int = 0
    failed: bool = False
    total: ExactSum | None = None

    @property
    def keeps_sums(self) -> bool:
        """There is time enough for workers to keep their sum from one chunk to the next."""
        return self.deadline is None or self.deadline - time.monotonic() > _HASTE


@dataclass(eq=False)
class Chunk:
    """Messages of one payload that one worker runs one after the other.

    Args:
        batch: what it is part of.
        payload: the messages' content.
        messages: by client.
        attempt: how often it has been started, from 1.
        units: how much work they are.
        vectorized: its clients train as one batch, so that who is in it shows in the last bits of the result.
    """

    batch: Dispatch
    payload: Payload
    messages: list[Message]
    attempt: int = 1
    vectorized: bool = False
    units: float = 0.0

    @cached_property
    def clients(self) -> frozenset[int]:
        """Who takes part."""
        return frozenset(execution.client_of(message.metadata.dst_node_id) for message in self.messages)
