"""What is asked of the clients in one phase of a round, and what has come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import MISSING
from fedlab.server.messaging.inspection import Expected, Training


@dataclass
class Delivered:
    """What was delivered in one phase of a round, and the replies to it.

    Args:
        replies: all replies except errors, in the order of client ids. If the engine has formed a sum, it is in one of
            them.
        served: number of times that each client was sent its message.
        sent: number of times that each client was sent each shared tensor.
    """

    replies: list[Message] = field(default_factory=list)
    served: Counter[int] = field(default_factory=Counter)
    sent: Counter[tuple[int, str]] = field(default_factory=Counter)

    @property
    def answers(self) -> list[Message]:
        """The replies of the clients that did their work."""
        return [reply for reply in self.replies if MISSING not in reply.content]


@dataclass(frozen=True)
class Part:
    """Messages of a phase that go out together.

    Args:
        messages: one for each client, without instructions.
        instructions: for these clients.
        training: what a round of training expects of the replies; None in the other phases.
    """

    messages: Sequence[Message]
    instructions: Instructions
    training: Training | None = None


@dataclass
class Asked:
    """A part on its way.

    Args:
        messages: as they were given, by client.
        instructions: for these clients.
        phase: its name.
        expected: checks a reply.
        delivered: what has come of it.
        failures: why a client has not answered, by client: in the words by which it is counted, and in its own.
    """

    messages: Mapping[int, Message]
    instructions: Instructions
    phase: str
    expected: Expected
    delivered: Delivered = field(default_factory=Delivered)
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._contents = {client: message.content for client, message in self.messages.items()}
        self._sent: set[int] = set()

    def content(self, client: int) -> RecordDict:
        """What a client was sent, but for instructions and shared tensors."""
        return self._contents[client]

    def message(self, client: int, node: int) -> Message:
        """The message to a client, without instructions: at first as it was given, then a new one like it."""
        message = self.messages[client]
        if client not in self._sent and message.metadata.dst_node_id == node:
            self._sent.add(client)
            return message
        given = message.metadata
        return Message(self._contents[client], node, given.message_type, ttl=given.ttl, group_id=given.group_id)
