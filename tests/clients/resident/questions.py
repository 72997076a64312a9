"""Messages to the app of these tests, and what it answers."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message, RecordDict


def asking(do: str = "tell", **more: str) -> Message:
    """A message to the app."""
    return Message(RecordDict({"asked": ConfigRecord({"do": do, **more})}), 7, "query.anything")


def facts(reply: Message) -> ConfigRecord:
    """What the app has told of itself."""
    assert not reply.has_error(), reply.error.reason
    found = reply.content["facts"]
    assert isinstance(found, ConfigRecord)
    return found
