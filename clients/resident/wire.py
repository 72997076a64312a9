"""How the process of one message and its node's worker talk: settings as plain values, arrays as raw bytes.

Both are processes of one user on one machine, and the socket lies in a folder that only this user can enter. Values are
therefore pickled. Arrays are not: their bytes are sent as they are, one array after the other, so that neither side
holds a second copy of the whole payload, and caches that Flower keeps in them do not matter.

This module imports no torch, because a process that lives for one message imports it.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

_LENGTH = struct.Struct("!Q")
_BEGUN = b"+"


class Channel:
    """One exchange over a connected socket: a request and its reply. Closes the socket when it is left.

    Args:
        connection: a connected stream socket without a time limit.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._reader = connection.makefile("rb")

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *caught: object) -> None:
        self._reader.close()
        self.connection.close()

    def begin(self) -> None:
        """Say that work on the next request begins."""
        self.connection.sendall(_BEGUN)

    def begun(self) -> bool:
        """Wait until the other side begins; False if it ended before, and so has done nothing."""
        try:
            return self._reader.read(len(_BEGUN)) == _BEGUN
        except OSError:
            return False

    def send_request(self, message: Message, context: Context) -> None:
        """Send a message and the context in which it is to be answered."""
        facts = {
            "metadata": message.metadata,
            "run_id": context.run_id,
            "node_id": context.node_id,
            "node_config": dict(context.node_config),
            "run_config": dict(context.run_config),
            "series_id": context.series_id,
        }
        self._send(facts, message.content, context.state)

    def receive_request(self) -> tuple[Message, Context]:
        """The message and the context.

        Raises:
            EOFError: the other side is gone.
        """
        facts, (content, state) = self._receive()
        message = Message(content=content, metadata=facts.pop("metadata"))  # type: ignore[call-overload]  # an overload for engines
        return message, Context(state=state, **facts)

    def send_reply(self, reply: Message, state: RecordDict) -> None:
        """Send what a reply holds, and the state that the context has after it."""
        if reply.has_error():
            self._send({"code": reply.error.code, "reason": reply.error.reason}, RecordDict(), state)
        else:
            self._send({}, reply.content, state)

    def receive_reply(self) -> tuple[RecordDict | Error, RecordDict]:
        """What the reply holds, and the context's new state.

        Raises:
            EOFError: the other side is gone.
        """
        failure, (content, state) = self._receive()
        return (Error(failure["code"], failure["reason"]) if failure else content), state

    def _send(self, facts: Mapping[str, Any], *contents: RecordDict) -> None:
        self._put(pickle.dumps((facts, [_outline(content) for content in contents]), pickle.HIGHEST_PROTOCOL))
        for content in contents:
            for array in _arrays(content):
                self._put(array.data)

    def _receive(self) -> tuple[dict[str, Any], list[RecordDict]]:
        facts, outlines = pickle.loads(self._get())
        return facts, [self._filled(outline) for outline in outlines]

    def _filled(self, outline: list[tuple[str, type, Any]]) -> RecordDict:
        content = RecordDict()
        for key, kind, items in outline:
            if kind is ArrayRecord:
                content[key] = record = ArrayRecord()
                for name, dtype, shape, stype in items:
                    record[name] = Array(dtype, shape, stype, self._get())
            else:
                content[key] = kind(items)
        return content

    def _put(self, data: bytes) -> None:
        self.connection.sendall(_LENGTH.pack(len(data)))
        self.connection.sendall(data)

    def _get(self) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = self._reader.read(count)
        if len(data) < count:
            raise EOFError("the other process closed the connection")
        return data


def _outline(content: RecordDict) -> list[tuple[str, type, Any]]:
    """The records by key and kind, with everything in them but the bytes of arrays."""
    outline: list[tuple[str, type, Any]] = []
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = [(name, array.dtype, tuple(array.shape), str(array.stype)) for name, array in record.items()]
            outline.append((key, ArrayRecord, arrays))
        else:
            outline.append((key, ConfigRecord if isinstance(record, ConfigRecord) else MetricRecord, dict(record)))
    return outline


def _arrays(content: RecordDict) -> Iterator[Array]:
    """All arrays, in the order of the outline."""
    for record in content.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()
