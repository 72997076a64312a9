"""The resident worker of a node: it imports FedLab once and keeps runtime, data and networks between messages.

It ends when no message has come for a while, when the SuperExec that starts the processes of messages is gone, when its
socket was removed because another run has come, and when the process whose message it works on is gone. In the last
case it ends in the middle of its work, because nobody would wait for the result and the next message would have to.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedlab.clients.resident.app import load
from fedlab.clients.resident.meeting import Meeting
from fedlab.clients.resident.wire import Channel

log = logging.getLogger("fedlab.worker")

_TICK = 1.0  # seconds between two looks at whether it is time to end
_LOOK = 500  # milliseconds between two looks at whether the work is done


class Worker:
    """Answers the messages that come to a socket, one after the other.

    Args:
        listener: the listening socket.
        meeting: where it was bound.
        patience: seconds to wait for a message.
        wanted: whether the processes of messages can still come, for example because the SuperExec still runs.
        clock: gives the time in seconds.
        tick: seconds between two looks at whether it is time to end.
    """

    def __init__(
        self,
        listener: socket.socket,
        meeting: Meeting,
        patience: float,
        wanted: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        tick: float = _TICK,
    ) -> None:
        self._listener, self._meeting, self._patience = listener, meeting, patience
        self._wanted, self._clock, self._tick = wanted, clock, tick
        self._bound = meeting.socket.lstat().st_ino
        self._app: Callable[[Message, Context], Message] | None = None

    def serve(self) -> str:
        """Work until it is time to end, and return the reason."""
        last = self._clock()
        while True:
            if self._waiting(self._tick):
                self._answer()
                last = self._clock()
                continue
            if not self._is_bound():
                return "another run has come, or the socket was removed"
            reason = ""
            if not self._wanted():
                reason = "the SuperExec is gone"
            elif self._clock() - last >= self._patience:
                reason = f"no message has come for {self._patience:g} s"
            if reason and self._closed():
                return reason

    def _waiting(self, seconds: float) -> bool:
        return bool(select.select([self._listener], [], [], seconds)[0])

    def _is_bound(self) -> bool:
        try:
            return self._meeting.socket.lstat().st_ino == self._bound
        except FileNotFoundError:
            return False

    def _closed(self) -> bool:
        """Stop listening, unless a message has come meanwhile; under the lock, because messages connect under it."""
        with self._meeting.locked():
            if self._waiting(0.0):
                return False
            if self._is_bound():
                self._meeting.socket.unlink()
                self._meeting.log.unlink(missing_ok=True)
            self._listener.close()
            return True

    def _answer(self) -> None:
        """Answer one message."""
        connection, _ = self._listener.accept()
        began = time.perf_counter()
        with Channel(connection) as channel:
            try:
                channel.begin()
                message, context = channel.receive_request()
                received = time.perf_counter()
                with _asked_for(connection):
                    reply = self._work(message, context)
                worked = time.perf_counter()
                channel.send_reply(reply, context.state)
            except (EOFError, OSError) as error:
                log.warning("the process of a message is gone: %s", error)
                return
        steps = received - began, worked - received, time.perf_counter() - worked
        log.info("%s: received in %.3f s, worked %.3f s, replied in %.3f s", message.metadata.message_type, *steps)

    def _work(self, message: Message, context: Context) -> Message:
        try:
            if self._app is None:
                self._app = load(self._meeting.reference)
            message.content = _decoded(message.content)
            return self._app(message, context)
        except (Exception, SystemExit):  # a client that calls sys.exit must not end the worker
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, traceback.format_exc()), reply_to=message)


@contextmanager
def _asked_for(connection: socket.socket) -> Iterator[None]:
    """While this is entered, the process ends if the other side closes the connection, on which it sends nothing."""
    done = threading.Event()

    def watch() -> None:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        while not done.is_set():
            if poll.poll(_LOOK) and not done.is_set():
                log.error("the process of the message is gone: its work is given up")
                os._exit(1)

    watcher = threading.Thread(target=watch, name="watcher", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()


def _decoded(content: RecordDict) -> RecordDict:
    """The same records with arrays that can be read without a further copy."""
    for record in content.values():
        if isinstance(record, ArrayRecord):
            for name, array in list(record.items()):
                record[name] = _readable(array)
    return content


def _readable(array: Array) -> Array:
    from fedlab.protocol.messages import NdArray, decoded  # imports torch, which only work with arrays has to wait for

    return NdArray(decoded(array)) if array.stype == "numpy.ndarray" else array


def superexec_lives(pid: int) -> Callable[[], bool]:
    """A function that says whether the process with this id still runs, and is no later one with the same id."""
    born = _birth(pid)

    def lives() -> bool:
        if born is not None:
            return _birth(pid) == born
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    return lives


def _birth(pid: int) -> str | None:
    """When a process was started; None if it is gone or if the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a socket that was inherited from the process that started this one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listener", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--reference")
    parser.add_argument("--patience", type=float)
    parser.add_argument("--superexec", type=int)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s: %(message)s")
    log.info("worker %s started", asked.name)
    listener = socket.socket(fileno=asked.listener)
    listener.setblocking(True)
    meeting = Meeting(asked.folder, asked.name, asked.reference)
    reason = Worker(listener, meeting, asked.patience, superexec_lives(asked.superexec)).serve()
    log.info("worker %s ends: %s", asked.name, reason)


if __name__ == "__main__":
    main()
