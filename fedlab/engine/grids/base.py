"""What FedLab's own grids have in common: all of Flower's interface, and the states of the simulated clients."""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlab.config import EngineConfig
from fedlab.engine import execution
from fedlab.engine.dispatch import CALL_SECONDS, Chunk, Dispatch, Payload
from fedlab.engine.execution import RUN_ID, ChunkResult, pack_state, set_task_identity, share_content, unpack_state
from fedlab.engine.scheduling import CostModel, Span
from fedlab.engine.simulation import Listeners, Simulation
from fedlab.errors import FedLabError
from fedlab.protocol.messages import attach_sum, requested_reduction

Workload = Callable[[str, int], float]


class SimulationGrid(Grid):
    """Carries messages to simulated clients and keeps the clients' states between rounds.

    Flower's node ids are ``client + 1000``, so that a seeded choice of nodes is the same in every run. Replies are
    sorted by client. A client that has no state takes no memory, so there may be any number of them.

    Args:
        simulation: the clients.
        config: the configuration's section ``engine``, of which ``vectorize`` is used here.
        listeners: who is told how the work goes on.
    """

    def __init__(self, simulation: Simulation, config: EngineConfig, listeners: Listeners) -> None:
        set_task_identity()
        self.num_clients = simulation.num_clients
        self._fail_fast, self._listeners = simulation.fail_fast, listeners
        self._vectorize = config.vectorize if isinstance(config.vectorize, int) else None
        self._workload: Workload = lambda kind, client: 1.0
        self._costs = CostModel()
        self._spans: list[tuple[int, Span]] = []
        self._run = Run.create_empty(RUN_ID)
        self._states: dict[int, bytes] = {}
        self._message_ids, self._dispatch_numbers = itertools.count(1), itertools.count(1)
        self._pushed: set[str] = set()
        self._inbox: dict[str, Message] = {}

    def measure_by(self, workload: Workload) -> None:
        """Let the engine know how much work a message is, so that it can divide the work evenly among its workers.

        Args:
            workload: called with the type of a message, such as ``train``, and a client; returns the work in any unit,
                for example in batches. Until this is called, all messages count alike.
        """
        self._workload = workload

    # What a grid adds

    @abstractmethod
    def _plan(self, units: Sequence[float], total: float | None, overhead: float) -> list[list[int]]:
        """Positions of the messages by chunk, in the order in which chunks are handed out.

        The arguments are those of `fedlab.engine.scheduling.plan_chunks`.
        """

    @abstractmethod
    def _submit(self, chunks: Iterable[Chunk]) -> None:
        """Queue chunks without waiting for them."""

    @abstractmethod
    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        """Let the queued work go on, and return what is finished.

        Args:
            timeout: seconds to wait at most until something is finished; None waits as long as it takes. The method
                may return earlier, with nothing.
        """

    def _await_workers(self) -> bool:
        """Wait until there is a worker, and return whether that took any waiting. The inline grid needs no worker."""
        return False

    @abstractmethod
    def _cancel(self, dispatch: Dispatch) -> None:
        """Drop the unfinished work of a dispatch."""

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
        """Copies of all states that are not empty, by client in ascending order. Equal states may be one object."""
        unpacked: dict[bytes, RecordDict] = {}
        for packed in self._states.values():
            if packed not in unpacked:
                unpacked[packed] = unpack_state(packed)
        return {client: unpacked[self._states[client]] for client in sorted(self._states)}

    def restore_client_states(self, states: Mapping[int, RecordDict]) -> None:
        """Replace the states of all clients, for example by those of a checkpoint."""
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

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        inspect: execution.Inspect | None = None,
    ) -> list[Message]:
        """Let clients handle the messages, and wait for the replies.

        If the messages ask for a reduction, the replies' ``arrays`` are summed over the whole call, and `exact_sum` of
        the replies returns the sum.

        Args:
            messages: to any nodes. Messages that share their records are carried together.
            timeout: seconds. A client that has not answered by then gets an error reply, and its work is stopped. The
                time in which there is no worker does not count, because no client could have answered. That time is
                bounded as well: a worker that does not start in time is given up, and the run ends when none is left.
            inspect: checks every reply before anything of it is used. A reply that it refuses becomes an error with the
                code `fedlab.protocol.messages.UNUSABLE`. None believes all replies.

        Raises:
            FedLabError: a message goes to an unknown node, or the messages ask for different reductions.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        dispatch, reported = self._send(messages, pushed=False, deadline=deadline, inspect=inspect), 0
        while dispatch.waiting:
            left = None
            if dispatch.deadline is not None:
                began = time.monotonic()
                waited = self._await_workers()
                now = time.monotonic()
                if waited:
                    dispatch.deadline += now - began
                left = dispatch.deadline - now
            if left is not None and left <= 0:
                self._cancel(dispatch)
                self._expire(dispatch, timeout)
                break
            for chunk, result in self._collect(left):
                self._absorb(chunk, result)
            answered = len(dispatch.replies) + dispatch.num_kept
            if answered != reported and self._listeners.on_progress is not None:
                self._listeners.on_progress(answered, len(dispatch.position))
            reported = answered
            if dispatch.stop_at_error and dispatch.failed:
                self._cancel(dispatch)
                dispatch.total = None  # it lacks what workers still keep
                break
        self._tell()
        dispatch.replies.sort(key=lambda reply: dispatch.position[reply.metadata.reply_to_message_id])
        if dispatch.total is not None:
            first = next((reply for reply in dispatch.replies if not reply.has_error()), None)
            if first is not None:
                attach_sum(first, dispatch.total)
        return dispatch.replies

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages and return their ids. The replies carry their own arrays, and nothing is summed."""
        messages = list(messages)
        dispatch = self._send(messages, pushed=True)
        self._pushed.update(dispatch.position)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come by now, sorted by client. Every reply is returned once."""
        while results := self._collect(0.0):
            for chunk, result in results:
                self._absorb(chunk, result)
        self._tell()
        replies = [self._inbox.pop(message_id) for message_id in message_ids if message_id in self._inbox]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    # Internals

    def _send(
        self,
        messages: Iterable[Message],
        pushed: bool,
        deadline: float | None = None,
        inspect: execution.Inspect | None = None,
    ) -> Dispatch:
        numbered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        nodes = self.get_node_ids()
        groups: dict[tuple[tuple[str, int], ...], list[Message]] = {}
        for message in numbered:
            if message.metadata.dst_node_id not in nodes:
                raise FedLabError(
                    f"a message goes to node {message.metadata.dst_node_id}: "
                    f"expected one of the nodes {self.node_of(0)} to {self.node_of(self.num_clients - 1)}"
                )
            # Flower's own grids set the id in this way too
            message.metadata.__dict__["_message_id"] = str(next(self._message_ids))
            groups.setdefault(tuple((key, id(record)) for key, record in message.content.items()), []).append(message)
        ids = [message.metadata.message_id for message in numbered]
        dispatch = Dispatch(
            number=next(self._dispatch_numbers),
            position={message_id: place for place, message_id in enumerate(ids)},
            waiting=dict(zip(ids, numbered, strict=True)),
            stop_at_error=self._fail_fast and not pushed,
            deadline=deadline,
        )
        chunks = []
        for group in groups.values():
            content = group[0].content
            # pushed work may begin after the caller has changed the arrays it sent
            reduction = None if pushed else requested_reduction(content)
            payload = Payload(share_content(content, copy=pushed), reduction, inspect)
            chunks += self._divide(dispatch, payload, group)
        reductions = [chunk.payload.reduction for chunk in chunks]
        if any(reduction != reductions[0] for reduction in reductions):
            raise FedLabError("messages sent together ask for different reductions: use one for all of them")
        if chunks and reductions[0] is not None:
            dispatch.total = reductions[0].start()
        self._submit(chunks)
        return dispatch

    def _divide(self, dispatch: Dispatch, payload: Payload, messages: list[Message]) -> list[Chunk]:
        kind = messages[0].metadata.message_type
        units = [self._workload(kind, self.client_of(message.metadata.dst_node_id)) for message in messages]
        largest = self._vectorize if kind == MessageType.TRAIN else None
        if largest:  # results depend on who is in a chunk, so neither workers nor measured costs may change that
            plan = _evenly(range(len(messages)), largest)
        else:
            overhead = CALL_SECONDS if dispatch.keeps_sums else CALL_SECONDS + payload.seconds_of_sum
            plan = self._plan(units, self._costs.seconds(kind, sum(units)), overhead)
        return [
            Chunk(
                dispatch,
                payload,
                [messages[place] for place in places],
                units=sum(units[place] for place in places),
                vectorized=bool(largest),
            )
            for places in plan
        ]

    def _absorb(self, chunk: Chunk, result: ChunkResult) -> None:
        dispatch = chunk.dispatch
        for reply in result.replies:
            message_id = reply.metadata.reply_to_message_id
            dispatch.waiting.pop(message_id)
            dispatch.failed |= reply.has_error()
            if message_id in self._pushed:
                self._pushed.remove(message_id)
                self._inbox[message_id] = reply
            else:
                dispatch.replies.append(reply)
        same: dict[bytes, bytes] = {}  # most states are just a version number: equal ones of a chunk share their memory
        for client, state in result.states.items():
            if state is None:
                self._states.pop(client, None)
            else:
                self._states[client] = same.setdefault(state, state)
        if dispatch.total is not None and result.total is not None and result.total is not dispatch.total:
            dispatch.total.merge(result.total)
        self._spans += [(result.worker, span) for span in result.spans]
        if result.spans and not any(reply.has_error() for reply in result.replies):
            self._costs.learn(result.spans[0].kind, chunk.units, sum(span.seconds for span in result.spans))

    def _tell(self) -> None:
        spans, self._spans = self._spans, []
        if spans and self._listeners.on_work is not None:
            self._listeners.on_work(spans)

    def _states_of(self, chunk: Chunk) -> dict[int, bytes]:
        return {client: self._states[client] for client in chunk.clients if client in self._states}

    @staticmethod
    def _without_memory(chunk: Chunk, result: ChunkResult, hint: str) -> ChunkResult:
        """The result of a chunk in which memory ran out, with an error reply for every message that is left."""
        answered = {reply.metadata.reply_to_message_id for reply in result.replies}
        for message in chunk.messages:
            if message.metadata.message_id not in answered:
                error = Error(ErrorCode.CLIENT_APP_CRASHED, f"out of memory: {hint}.\n{result.out_of_memory}")
                result.replies.append(Message(error, reply_to=message))
        return result

    @staticmethod
    def _expire(dispatch: Dispatch, timeout: float | None) -> None:
        for message in dispatch.waiting.values():
            error = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"no reply within {timeout:g} s (federation.timeout)")
            dispatch.replies.append(Message(error, reply_to=message))
        dispatch.waiting.clear()


def _evenly(places: Sequence[int], largest: int) -> list[list[int]]:
    """Divide places into pieces of at most `largest`: as few pieces as possible, and of about equal size."""
    size = -(-len(places) // -(-len(places) // largest))
    return [list(places[start : start + size]) for start in range(0, len(places), size)]
