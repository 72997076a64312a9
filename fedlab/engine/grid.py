"""The Flower Grid of FedLab's own engines: everything but where the work is done."""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlab.engine import execution
from fedlab.engine.execution import RUN_ID, ChunkResult, pack_state, set_task_identity, share_content, unpack_state
from fedlab.engine.messages import attach_sum, requested_reduction
from fedlab.engine.reduction import ExactSum, Reduction
from fedlab.errors import FedLabError

Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Payload:
    """Content that several messages share, held once however many clients it goes to."""

    content: RecordDict
    reduction: Reduction | None


@dataclass(eq=False)
class Batch:
    """Messages that were sent together, and what has come back so far."""

    order: dict[str, int]
    waiting: dict[str, Message]
    stop_at_error: bool
    replies: list[Message] = field(default_factory=list)
    failed: bool = False
    total: ExactSum | None = None


@dataclass(eq=False)
class Chunk:
    """Messages of one payload that one worker runs one after the other.

    Args:
        batch: what it is part of.
        payload: the messages' content.
        messages: by client.
        attempt: how often it has been started, from 1.
        together: its clients train as one batch, so that who is in it shows in the last bits of the result.
    """

    batch: Batch
    payload: Payload
    messages: list[Message]
    attempt: int = 1
    together: bool = False

    @property
    def clients(self) -> set[int]:
        """Who takes part."""
        return {execution.client_of(message.metadata.dst_node_id) for message in self.messages}


class SimulationGrid(Grid):
    """Carries messages to simulated clients and keeps the clients' states between rounds.

    Node ids are ``client + 1000``, so a seeded choice of nodes is the same in every run. Replies come sorted by
    client. Clients without state cost nothing, however many there are.

    Args:
        num_clients: clients of the federation, numbered from 0.
        on_progress: called with (replies so far, messages sent) during `send_and_receive`.
        fail_fast: `send_and_receive` stops at the first error reply and returns what there is, the error included.
        together: train up to so many clients in one chunk, whatever the workers, because they train as one batch.
    """

    def __init__(
        self,
        num_clients: int,
        *,
        on_progress: Progress | None = None,
        fail_fast: bool = False,
        together: int | None = None,
    ) -> None:
        set_task_identity()
        self.num_clients = num_clients
        self._on_progress = on_progress
        self._fail_fast = fail_fast
        self._together = together
        self._run = Run.create_empty(RUN_ID)
        self._states: dict[int, bytes] = {}
        self._message_ids = itertools.count(1)
        self._pushed: set[str] = set()
        self._inbox: dict[str, Message] = {}

    # What an engine adds

    @abstractmethod
    def _chunk_size(self, messages: int) -> int:
        """Clients per chunk for a batch of so many messages."""

    @abstractmethod
    def _submit(self, chunks: Iterable[Chunk]) -> None:
        """Queue work without waiting for it."""

    @abstractmethod
    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        """Move the queued work on and return what is finished.

        Waits at most `timeout` seconds for something to finish, for ever if None; may return early with nothing.
        """

    @abstractmethod
    def _cancel(self, batch: Batch) -> None:
        """Drop the unfinished work of a batch."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; may be called twice."""

    # Clients and their states

    def node_of(self, client: int) -> int:
        """Flower's node id of a client."""
        return execution.node_of(client)

    def client_of(self, node: int) -> int:
        """The client behind one of Flower's node ids."""
        return execution.client_of(node)

    def client_states(self) -> dict[int, RecordDict]:
        """Copies of all states that are not empty, by client in ascending order."""
        return {client: unpack_state(self._states[client]) for client in sorted(self._states)}

    def restore_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """Replace all states, for example by those of a checkpoint."""
        self._states = {client: packed for client, state in states.items() if (packed := pack_state(state)) is not None}

    # Flower's Grid

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return range(self.node_of(0), self.node_of(self.num_clients))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Run the messages and wait for the replies.

        If they ask for a reduction, their ``arrays`` are summed over the whole call; `exact_sum` reads the result.

        Args:
            messages: to any nodes; those sharing their records are carried together.
            timeout: seconds; clients that have not answered by then get an error reply, and their work is stopped.

        Raises:
            FedLabError: a message to an unknown node, or different reductions in one call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        batch = self._send(messages, pushed=False)
        while batch.waiting:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._cancel(batch)
                self._expire(batch, timeout)
                break
            for chunk, result in self._collect(left):
                self._absorb(chunk, result)
                if chunk.batch is batch and self._on_progress is not None:
                    self._on_progress(len(batch.replies), len(batch.order))
            if batch.stop_at_error and batch.failed:
                self._cancel(batch)
                break
        batch.replies.sort(key=lambda reply: batch.order[reply.metadata.reply_to_message_id])
        if batch.total is not None:
            first = next((reply for reply in batch.replies if not reply.has_error()), None)
            if first is not None:
                attach_sum(first, batch.total)
        return batch.replies

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages and return their ids; every reply then carries its own arrays, nothing is summed."""
        messages = list(messages)
        batch = self._send(messages, pushed=True)
        self._pushed.update(batch.order)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Those replies that have come by now, sorted by client; each is given once."""
        while results := self._collect(0.0):
            for chunk, result in results:
                self._absorb(chunk, result)
        replies = [self._inbox.pop(message_id) for message_id in message_ids if message_id in self._inbox]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    # Internals

    def _send(self, messages: Iterable[Message], pushed: bool) -> Batch:
        numbered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        nodes = self.get_node_ids()
        groups: dict[tuple[tuple[str, int], ...], list[Message]] = {}
        for message in numbered:
            if message.metadata.dst_node_id not in nodes:
                raise FedLabError(
                    f"a message goes to node {message.metadata.dst_node_id}: "
                    f"expected one of the nodes {self.node_of(0)} to {self.node_of(self.num_clients - 1)}"
                )
            message.metadata.__dict__["_message_id"] = str(next(self._message_ids))  # Flower's grids do the same
            groups.setdefault(tuple((key, id(record)) for key, record in message.content.items()), []).append(message)
        ids = [message.metadata.message_id for message in numbered]
        batch = Batch(
            order={message_id: place for place, message_id in enumerate(ids)},
            waiting=dict(zip(ids, numbered, strict=True)),
            stop_at_error=self._fail_fast and not pushed,
        )
        size = self._chunk_size(len(numbered))
        chunks = []
        for group in groups.values():
            content = group[0].content
            # pushed work may start after the caller has changed the arrays it sent
            payload = Payload(share_content(content, copy=pushed), None if pushed else requested_reduction(content))
            training = self._together is not None and group[0].metadata.message_type == MessageType.TRAIN
            parts = _evenly(group, self._together) if self._together and training else _pieces(group, size)
            chunks += [Chunk(batch, payload, part, together=training) for part in parts]
        reductions = [chunk.payload.reduction for chunk in chunks]
        if any(reduction != reductions[0] for reduction in reductions):
            raise FedLabError("messages sent together ask for different reductions: use one for all of them")
        if chunks and reductions[0] is not None:
            batch.total = reductions[0].start()
        self._submit(sorted(chunks, key=lambda chunk: batch.order[chunk.messages[0].metadata.message_id]))
        return batch

    def _absorb(self, chunk: Chunk, result: ChunkResult) -> None:
        batch = chunk.batch
        for reply in result.replies:
            message_id = reply.metadata.reply_to_message_id
            batch.waiting.pop(message_id)
            batch.failed |= reply.has_error()
            if message_id in self._pushed:
                self._pushed.remove(message_id)
                self._inbox[message_id] = reply
            else:
                batch.replies.append(reply)
        for client, state in result.states.items():
            if state is None:
                self._states.pop(client, None)
            else:
                self._states[client] = state
        if batch.total is not None and result.total is not None and result.total is not batch.total:
            batch.total.merge(result.total)

    def _states_of(self, chunk: Chunk) -> dict[int, bytes]:
        return {client: self._states[client] for client in chunk.clients if client in self._states}

    @staticmethod
    def _without_memory(chunk: Chunk, result: ChunkResult, hint: str) -> ChunkResult:
        """The result of a chunk that ended for lack of memory and will not be repeated."""
        answered = {reply.metadata.reply_to_message_id for reply in result.replies}
        for message in chunk.messages:
            if message.metadata.message_id not in answered:
                error = Error(ErrorCode.CLIENT_APP_CRASHED, f"out of memory: {hint}.\n{result.out_of_memory}")
                result.replies.append(Message(error, reply_to=message))
        return result

    @staticmethod
    def _expire(batch: Batch, timeout: float | None) -> None:
        for message in batch.waiting.values():
            error = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"no reply within {timeout:g} s (federation.timeout)")
            batch.replies.append(Message(error, reply_to=message))
        batch.waiting.clear()


def _pieces(messages: Sequence[Message], size: int) -> list[list[Message]]:
    return [list(messages[start : start + size]) for start in range(0, len(messages), size)]


def _evenly(messages: Sequence[Message], largest: int) -> list[list[Message]]:
    """As few pieces as possible, and of nearly equal size."""
    pieces = -(-len(messages) // largest)
    return _pieces(messages, -(-len(messages) // pieces))
