"""The ClientApp of a deployment. Flower starts a process for every message; this app hands it to the node's worker.

This module and what it imports must stay light, because every message pays for it: no torch, no numpy of our own, no
configuration. The work itself is done by `fedlab.clients.app`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedlab.clients.resident.meeting import Meeting, patience
from fedlab.clients.resident.wire import Channel

_TRIES = 3  # workers that may end before they begin with a message


class Relay(ClientApp):
    """Hands every message to the resident worker of its node, whatever its type, and returns the worker's reply.

    The message is worked on in this process if ``FEDLAB_RESIDENT`` is 0, or if the system has no sockets in files or no
    folder for one.

    Args:
        reference: ``module:name`` of the app that does the work.
    """

    def __init__(self, reference: str) -> None:
        super().__init__()
        self._reference = reference

    def __call__(self, message: Message, context: Context) -> Message:
        meeting = Meeting.of(context, self._reference) if patience() > 0 else None
        if meeting is None:
            return load(self._reference)(message, context)
        for _ in range(_TRIES):
            with Channel(meeting.connect(context)) as channel:
                if not channel.begun():  # it ended with this message in its queue
                    continue
                try:
                    channel.send_request(message, context)
                    answer, context.state = channel.receive_reply()
                    return Message(answer, reply_to=message)
                except (EOFError, OSError) as error:
                    return _failed(
                        f"the worker of this node ended in the middle of a message: {error}", meeting, message
                    )
        return _failed(f"{_TRIES} workers of this node ended before they began with the message", meeting, message)


def _failed(reason: str, meeting: Meeting, message: Message) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_CRASHED, f"{reason}\n{meeting.told()}"), reply_to=message)


def load(reference: str) -> Callable[[Message, Context], Message]:
    """The app that ``module:name`` names."""
    module, _, name = reference.partition(":")
    found: Callable[[Message, Context], Message] = getattr(importlib.import_module(module), name)
    return found


app = Relay("fedlab.clients.app:app")
