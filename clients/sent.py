"""A node's own record of everything that leaves it: ``sent.jsonl`` in its folder, one line for each reply.

A line names every value of the reply with its kind, shape and size, but not the values themselves. The operator of a
site can compare it with what `docs/deployment.md` says leaves a site.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

from fedlab.config.node import state_folder
from fedlab.errors import ConfigErrors
from fedlab.storage.logs import put_aside

FILE = "sent.jsonl"
_LONGEST = 64 * 2**20  # bytes of the file before a new one is begun; the one before is kept


def record_sent(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Add the reply to a message to the node's record, before the reply is sent.

    What cannot be recorded, because a disk is full for example, is not sent; the reply is then an error that says so.
    """
    reply = call_next(message, context)
    try:
        path = state_folder(context.node_config) / FILE
    except ConfigErrors:  # without the node's file there is no folder, and no data: the reply says that
        return reply
    facts = {"time": time.time(), "run": context.run_id, "message": message.metadata.message_type, **described(reply)}
    try:
        _append(path, json.dumps(facts, ensure_ascii=False) + "\n")
    except OSError as error:
        told = f"what this node sends cannot be recorded in {path}, and so it is not sent: {error.strerror or error}"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, told), reply_to=message)
    return reply


def described(reply: Message) -> dict[str, Any]:
    """What a reply contains: of each record its type, and of each of its values the kind, the shape and the bytes.

    The text of an error is part of the description, because it is all that such a reply consists of.
    """
    if reply.has_error():
        return {"error": reply.error.reason}
    records: dict[str, Any] = {}
    for name, record in reply.content.items():
        if isinstance(record, ArrayRecord):
            values: dict[str, Any] = {key: [a.dtype, list(a.shape), len(a.data)] for key, a in record.items()}
        else:
            values = {key: _kind(value) for key, value in record.items()}
        records[name] = {"type": type(record).__name__, "values": values}
    return {"records": records}


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    put_aside(path, _LONGEST)
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def _kind(value: object) -> list[Any]:
    """The type of a value, and how many values there are where it is a list."""
    if isinstance(value, list):
        return [f"list of {type(value[0]).__name__}" if value else "list", [len(value)]]
    return [type(value).__name__, []]
