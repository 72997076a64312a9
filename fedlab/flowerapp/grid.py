"""The grid that a Flower app's ServerApp is given: that of the engine, with a record of all that passes through it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlab.engine.grids.base import SimulationGrid
from fedlab.flowerapp.book import RoundBook

_LOOK = 0.002  # seconds between two looks for a reply from a thread that may not hold the engine


class RecordingGrid(Grid):
    """Passes everything on to an engine's grid, and tells a `RoundBook` of it.

    The engine's grid serves one thread at a time. Strategies of Flower's older interface call it from a thread for each
    client; their messages are queued with the engine together, so that all workers are used.

    Args:
        grid: of the engine.
        book: the record.
    """

    def __init__(self, grid: Grid, book: RoundBook) -> None:
        self._grid, self._book = grid, book
        self._owner, self._lock = threading.get_ident(), threading.RLock()
        self._pushed: dict[str, Message] = {}
        self._clients: Mapping[int, int] = {}

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages without waiting for replies.

        Raises:
            FedLabError: a message goes to an unknown node.
        """
        messages = list(messages)
        return self._push(messages, len(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages of `push_messages` that have come by now.

        Raises:
            ClientError: a client has failed, and errors end the run.
        """
        with self._lock:
            return self._pull(list(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Let clients handle messages, and wait for the replies.

        Args:
            messages: to any nodes.
            timeout: seconds.

        Raises:
            FedLabError: a message goes to an unknown node.
            ClientError: a client has failed, and errors end the run.
        """
        messages = list(messages)
        if threading.get_ident() != self._owner:
            return self._from_thread(messages, timeout)
        with self._lock:
            clients = self._numbers()
            self._book.sent(messages, clients)
            replies = list(self._grid.send_and_receive(messages, timeout=timeout))
            self._book.answered({message.metadata.message_id: message for message in messages}, replies, clients)
            self._book.lost(len(messages) - len(replies))
            return replies

    def _from_thread(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting, replies = set(self._push(messages, 0)), list[Message]()
        while waiting and (deadline is None or time.monotonic() < deadline):
            with self._lock:
                found = self._pull(list(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if waiting and not found:
                time.sleep(_LOOK)
        return replies

    def _push(self, messages: Sequence[Message], total: int) -> list[str]:
        with self._lock:
            self._book.sent(messages, self._numbers(), total)
            ids = list(self._grid.push_messages(messages))
            self._pushed.update(zip(ids, messages, strict=True))
            return ids

    def _pull(self, ids: Sequence[str]) -> list[Message]:
        replies = list(self._grid.pull_messages(ids))
        asked = {id: self._pushed.pop(id) for id in (reply.metadata.reply_to_message_id for reply in replies)}
        self._book.answered(asked, replies, self._numbers())
        return replies

    def _numbers(self) -> Mapping[int, int]:
        """Numbers of the clients by Flower's ids of their nodes; in Flower's own simulation in the order of the ids."""
        if not self._clients:
            nodes = self._grid.get_node_ids()
            if isinstance(self._grid, SimulationGrid):
                self._clients = {node: self._grid.client_of(node) for node in nodes}
            else:
                self._clients = {node: number for number, node in enumerate(sorted(nodes))}
        return self._clients
