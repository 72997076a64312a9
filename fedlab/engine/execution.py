"""How a process handles a chunk of messages with the client app. This is the same in all of FedLab's own engines."""

from __future__ import annotations

import copy
import pickle
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedlab.engine.limit import OverdueError, limited
from fedlab.engine.memory import release_memory
from fedlab.engine.scheduling import Span
from fedlab.errors import FedLabError
from fedlab.protocol.messages import (
    ARRAYS,
    ENGINE_ONLY,
    UNUSABLE,
    NdArray,
    array_record,
    client_weight,
    decoded,
    to_numpy,
)
from fedlab.protocol.sums import ExactSum, Reduction

Inspect = Callable[[int, RecordDict, Message], None]
"""Checks a client's reply, given the client, the content of the message that it was sent, and the reply.

It may change the reply, and raises a FedLabError if the reply cannot be used. It must be possible to pickle it.
"""

RUN_ID = 1
_TASK_ID = 1
_FIRST_NODE = 1000  # Flower reserves small node ids, 1 for the SuperLink among them


def node_of(client: int) -> int:
    """Flower's node id of a FedLab client."""
    return client + _FIRST_NODE


def client_of(node: int) -> int:
    """FedLab's client id of a Flower node."""
    return node - _FIRST_NODE


def set_task_identity() -> None:
    """Tell Flower which run this process works for. Without that, no Message can be built."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, _TASK_ID, SUPERLINK_NODE_ID


class VectorizingApp(ClientApp):
    """A client app that can train several clients as one batch.

    Args:
        vectorize: called before the first of a chunk's train messages is handled, with the content of the messages and
            the contexts of all their clients.
    """

    def __init__(self, vectorize: Callable[[RecordDict, Sequence[Context]], None]) -> None:
        super().__init__()
        self.vectorize = vectorize


@dataclass
class ChunkResult:
    """The result of a chunk.

    Args:
        replies: one for each message, in order; fewer if the chunk ended at an error.
        states: packed state by client, None if the state is empty. Clients that raised an exception are missing.
        total: sum of the replies' ``arrays``, if the messages asked for it.
        out_of_memory: the device's message when it had no memory left; the chunk ended there.
        spans: when each message was handled.
        worker: number of the worker, from 0.
    """

    replies: list[Message] = field(default_factory=list)
    states: dict[int, bytes | None] = field(default_factory=dict)
    total: ExactSum | None = None
    out_of_memory: str | None = None
    spans: list[Span] = field(default_factory=list)
    worker: int = 0


class ClientRunner:
    """Runs chunks of messages through a client app.

    Args:
        app: the client app, built in this process.
        num_clients: number of clients in the federation.
        run_config: scalars that are given to every client; each gets a copy.
    """

    def __init__(self, app: ClientApp, num_clients: int, run_config: UserConfig) -> None:
        self._app, self._num_clients, self._run_config = app, num_clients, run_config
        self.seconds: float | None = None
        """Seconds after which the work on a message is ended by an `OverdueError`; None sets no limit."""

    def run_chunk(
        self,
        content: RecordDict,
        metadatas: Sequence[Metadata],
        states: Mapping[int, bytes],
        reduction: Reduction | None = None,
        total: ExactSum | None = None,
        stop_at_error: bool = False,
        inspect: Inspect | None = None,
    ) -> ChunkResult:
        """Handle one message after the other.

        An exception becomes an error reply with its traceback, and the client's state stays as it was. The same happens
        with a reply that cannot be used, before anything of it is added to the sum. If the device runs out of memory,
        the chunk ends there, because only the engine can make room.

        Args:
            content: content of all the messages; it is not changed.
            metadatas: one for each message.
            states: packed state by client, for the clients that have one.
            reduction: how the replies' ``arrays`` are to be summed; None leaves them in the replies.
            total: the sum to add them to; None starts a new one.
            stop_at_error: leave out the messages after the first error.
            inspect: checks every reply; None believes them.
        """
        result = ChunkResult(total=reduction.start() if reduction is not None and total is None else total)
        try:
            self._vectorize(content, metadatas, states)
            for metadata in metadatas:
                self._run(content, metadata, states, reduction, result, inspect)
                if stop_at_error and result.replies[-1].has_error():
                    break
        except torch.OutOfMemoryError as error:
            result.out_of_memory = str(error)
        if result.out_of_memory is not None:  # within the except clause, the exception would still refer to tensors
            release_memory()
        return result

    def _vectorize(self, content: RecordDict, metadatas: Sequence[Metadata], states: Mapping[int, bytes]) -> None:
        if isinstance(self._app, VectorizingApp) and metadatas and metadatas[0].message_type == MessageType.TRAIN:
            clients = [client_of(metadata.dst_node_id) for metadata in metadatas]
            self._app.vectorize(content, [self._context(client, states.get(client)) for client in clients])

    def _run(
        self,
        content: RecordDict,
        metadata: Metadata,
        states: Mapping[int, bytes],
        reduction: Reduction | None,
        result: ChunkResult,
        inspect: Inspect | None,
    ) -> None:
        client, began, clock = client_of(metadata.dst_node_id), time.time(), time.perf_counter()
        message = Message(content=copy_content(content), metadata=copy.copy(metadata))  # type: ignore[call-overload]  # an overload for engines
        state = result.states[client] if client in result.states else states.get(client)
        context = self._context(client, state)
        try:
            with limited(self.seconds, lambda frame: OverdueError()):  # the sum below must not be broken off
                reply = self._checked(self._app(message, context), message)
            packed = pack_state(context.state)
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit):  # a client that calls sys.exit must not end the worker
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, traceback.format_exc())
            reply = Message(error, reply_to=message)
        else:
            reason = "" if reply.has_error() else _taken(reply, client, content, result.total, reduction, inspect)
            if reason:
                reply = Message(Error(UNUSABLE, reason), reply_to=message)
            else:
                result.states[client] = packed
        result.replies.append(reply)
        result.spans.append(Span(client, metadata.message_type, began, time.perf_counter() - clock))

    def _context(self, client: int, state: bytes | None) -> Context:
        return Context(
            run_id=RUN_ID,
            node_id=node_of(client),
            node_config={PARTITION_ID_KEY: client, NUM_PARTITIONS_KEY: self._num_clients},
            state=unpack_state(state),
            run_config=dict(self._run_config),
        )

    @staticmethod
    def _checked(reply: object, message: Message) -> Message:
        if not isinstance(reply, Message):
            raise TypeError(f"the client app returned {type(reply).__name__}: expected a flwr.app.Message")
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise ValueError("the client app returned a message that is no reply: use Message(..., reply_to=message)")
        if reply.metadata.src_node_id != message.metadata.dst_node_id:
            raise ValueError("the client app returned a reply in the name of another node")
        return reply


def copy_content(content: RecordDict) -> RecordDict:
    """A copy that may be changed freely. Only the arrays are not copied, and they are read-only."""
    result = RecordDict()
    for key, record in content.items():
        fresh = record.copy()
        if isinstance(fresh, ConfigRecord | MetricRecord):
            for name, value in fresh.items():
                if isinstance(value, list):
                    fresh[name] = value.copy()  # type: ignore[assignment]  # the same type as before
        result[key] = fresh
    return result


def share_content(content: RecordDict, copy: bool = False) -> RecordDict:
    """A copy whose arrays are decoded, once for all its readers, and can be shared between processes.

    Args:
        content: any records.
        copy: whether to copy the memory of the arrays as well.
    """
    result = copy_content(content)
    for record in result.values():
        if isinstance(record, ArrayRecord):
            for name, array in record.items():
                record[name] = array if isinstance(array, NdArray) and not copy else _decoded(array)
    return result


def pack_state(state: RecordDict) -> bytes | None:
    """A client's state as bytes; None if it is empty."""
    if not state:
        return None
    return pickle.dumps(share_content(state), protocol=pickle.HIGHEST_PROTOCOL)


def unpack_state(state: bytes | None) -> RecordDict:
    """The reverse of `pack_state`."""
    if state is None:
        return RecordDict()
    result: RecordDict = pickle.loads(state)
    return result


def _taken(
    reply: Message,
    client: int,
    sent: RecordDict,
    total: ExactSum | None,
    reduction: Reduction | None,
    inspect: Inspect | None,
) -> str:
    """Check a reply, add its arrays to the sum, and copy the rest of it.

    The copy is needed because the arrays of a reply often are the parameters of a model that the next client trains.

    Returns:
        Why the reply cannot be used; empty if it can. Nothing of it has been added to the sum then.
    """
    try:
        if claimed := sorted(ENGINE_ONLY.intersection(reply.content)):
            raise FedLabError(f"the reply holds the record {claimed[0]!r}, which only the engine may form")
        if inspect is not None:
            inspect(client, sent, reply)
        arrays = None
        if reduction is not None:
            arrays = array_record(reply.content, ARRAYS)
            reply.content.pop(ARRAYS, None)
        reply.content = share_content(reply.content, copy=True)
        if arrays is not None and reduction is not None and total is not None:
            total.add(to_numpy(arrays), client_weight(reply.content, reduction))
    except torch.OutOfMemoryError:
        raise
    except FedLabError as problem:
        return str(problem)
    except Exception:  # whatever a client app has put into its reply
        return f"the reply cannot be read:\n{traceback.format_exc()}"
    return ""


def _decoded(array: Array) -> Array:
    if isinstance(array, NdArray):
        return NdArray(array.numpy())
    # Flower's older interface sends an array without any bytes where it has no arrays at all
    if array.stype == "numpy.ndarray" and array.data:
        return NdArray(decoded(array))
    # bytes in a format of the user's own; the new Array lacks caches that cannot be pickled
    return Array(array.dtype, array.shape, array.stype, array.data)
