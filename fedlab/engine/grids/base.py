"""The Flower Grid of FedLab's own engines: everything but where the work is done."""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlab.engine import execution
from fedlab.engine.dispatch import CALL_SECONDS, Chunk, Dispatch, Payload
from fedlab.engine.execution import RUN_ID, ChunkResult, pack_state, set_task_identity, share_content, unpack_state
from fedlab.engine.scheduling import CostModel, Span
from fedlab.errors import FedLabError
from fedlab.protocol.messages import attach_sum, requested_reduction

Progress = Callable[[int, int], None]
WorkDone = Callable[[Sequence[tuple[int, Span]]], None]


class SimulationGrid(Grid):
    """Carries messages to simulated clients and keeps the clients' states between rounds.

    Node ids are ``client + 1000``, so a seeded choice of nodes is the same in every run. Replies come sorted by
    client. Clients without state cost nothing, however many there are.

    Args:
        num_clients: clients of the federation, numbered from 0.
        on_progress: called with (replies so far, messages sent) during `send_and_receive`.
        on_work: called with (worker, span) pairs when messages have been at work.
        fail_fast: `send_and_receive` stops at the first error reply and returns what there is, the error included.
        vectorized: train up to so many clients in one chunk, whatever the workers, because they train as one batch.
    """

    def __init__(
        self,
        num_clients: int,
        *,
        on_progress: Progress | None = None,
        on_work: WorkDone | None = None,
        fail_fast: bool = False,
        vectorized: int | None = None,
    ) -> None:
        set_task_identity()
        self.num_clients = num_clients
        self.workload: Callable[[str, int], float] = lambda kind, client: 1.0
        """How much work a message of a kind is for a client, in any unit; who knows better sets it."""
        self._on_progress, self._on_work = on_progress, on_work
        self._fail_fast = fail_fast
        self._vectorized = vectorized
        self._costs = CostModel()
        self._spans: list[tuple[int, Span]] = []
        self._run = Run.create_empty(RUN_ID)
        self._states: dict[int, bytes] = {}
        self._message_ids, self._batches = itertools.count(1), itertools.count(1)
        self._pushed: set[str] = set()
        self._inbox: dict[str, Message] = {}

    # What an engine adds

    @abstractmethod
    def _plan(self, units: Sequence[float], total: float | None, overhead: float) -> list[list[int]]:
        """Positions of the messages by chunk, in the order of dispatch; see `fedlab.engine.scheduling.plan_chunks`."""

    @abstractmethod
    def _submit(self, chunks: Iterable[Chunk]) -> None:
        """Queue work without waiting for it."""

    @abstractmethod
    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        """Move the queued work on and return what is finished.

        Waits at most `timeout` seconds for something to finish, for ever if None; may return early with nothing.
        """

    def _await_workers(self) -> None:
        """Wait until there is somebody to do the work. Engines without workers have nothing to wait for."""

    @abstractmethod
    def _cancel(self, batch: Dispatch) -> None:
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
        """Copies of all states that are not empty, by client in ascending order; equal ones may be one object."""
        unpacked: dict[bytes, RecordDict] = {}
        for packed in self._states.values():
            if packed not in unpacked:
                unpacked[packed] = unpack_state(packed)
        return {client: unpacked[self._states[client]] for client in sorted(self._states)}

    def restore_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """Replace all states, for example by those of a checkpoint."""
        packed = {id(state): pack_state(state) for state in states.values()}
        self._states = {c: found for c, state in states.items() if (found := packed[id(state)]) is not None}

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
                The time in which no worker is up does not count: no client could have answered. It is bounded all the
                same: a worker that does not start in time is given up, and when none is left that ends the run.

        Raises:
            FedLabError: a message to an unknown node, or different reductions in one call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        batch, told = self._send(messages, pushed=False, deadline=deadline), 0
        while batch.waiting:
            left = None
            if batch.deadline is not None:
                began = time.monotonic()
                self._await_workers()
                now = time.monotonic()
                batch.deadline += now - began
                left = batch.deadline - now
            if left is not None and left <= 0:
                self._cancel(batch)
                self._expire(batch, timeout)
                break
            for chunk, result in self._collect(left):
                self._absorb(chunk, result)
            come = len(batch.replies) + batch.kept
            if come != told and self._on_progress is not None:
                self._on_progress(come, len(batch.order))
            told = come
            if batch.stop_at_error and batch.failed:
                self._cancel(batch)
                batch.total = None  # what workers kept of it is not in it
                break
        self._tell()
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
        self._tell()
        replies = [self._inbox.pop(message_id) for message_id in message_ids if message_id in self._inbox]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    # Internals

    def _send(self, messages: Iterable[Message], pushed: bool, deadline: float | None = None) -> Dispatch:
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
        batch = Dispatch(
            number=next(self._batches),
            order={message_id: place for place, message_id in enumerate(ids)},
            waiting=dict(zip(ids, numbered, strict=True)),
            stop_at_error=self._fail_fast and not pushed,
            deadline=deadline,
        )
        chunks = []
        for group in groups.values():
            content = group[0].content
            # pushed work may start after the caller has changed the arrays it sent
            payload = Payload(share_content(content, copy=pushed), None if pushed else requested_reduction(content))
            chunks += self._divide(batch, payload, group)
        reductions = [chunk.payload.reduction for chunk in chunks]
        if any(reduction != reductions[0] for reduction in reductions):
            raise FedLabError("messages sent together ask for different reductions: use one for all of them")
        if chunks and reductions[0] is not None:
            batch.total = reductions[0].start()
        self._submit(chunks)
        return batch

    def _divide(self, batch: Dispatch, payload: Payload, messages: list[Message]) -> list[Chunk]:
        kind = messages[0].metadata.message_type
        units = [self.workload(kind, self.client_of(message.metadata.dst_node_id)) for message in messages]
        vectorized = self._vectorized if kind == MessageType.TRAIN else None
        if vectorized:  # who is in a chunk shows in its result, so neither workers nor measured costs may matter
            plan = _evenly(range(len(messages)), vectorized)
        else:
            overhead = CALL_SECONDS if batch.keeps_sums else CALL_SECONDS + payload.seconds_of_sum
            plan = self._plan(units, self._costs.seconds(kind, sum(units)), overhead)
        return [
            Chunk(
                batch,
                payload,
                [messages[place] for place in places],
                units=sum(units[place] for place in places),
                vectorized=bool(vectorized),
            )
            for places in plan
        ]

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
        same: dict[bytes, bytes] = {}  # most states are a version number: clients of one chunk share its bytes
        for client, state in result.states.items():
            if state is None:
                self._states.pop(client, None)
            else:
                self._states[client] = same.setdefault(state, state)
        if batch.total is not None and result.total is not None and result.total is not batch.total:
            batch.total.merge(result.total)
        self._spans += [(result.worker, span) for span in result.spans]
        if result.spans and not any(reply.has_error() for reply in result.replies):
            self._costs.learn(result.spans[0].kind, chunk.units, sum(span.seconds for span in result.spans))

    def _tell(self) -> None:
        spans, self._spans = self._spans, []
        if spans and self._on_work is not None:
            self._on_work(spans)

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
    def _expire(batch: Dispatch, timeout: float | None) -> None:
        for message in batch.waiting.values():
            error = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"no reply within {timeout:g} s (federation.timeout)")
            batch.replies.append(Message(error, reply_to=message))
        batch.waiting.clear()


def _evenly(places: Sequence[int], largest: int) -> list[list[int]]:
    """As few pieces of at most so many as there can be, of about equal size."""
    size = -(-len(places) // -(-len(places) // largest))
    return [list(places[start : start + size]) for start in range(0, len(places), size)]
