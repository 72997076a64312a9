"""What a run says of its guarantee, round by round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from flwr.app import Message


class Account(ABC):
    """What privacy has cost so far."""

    @abstractmethod
    def spent(self, rounds: int) -> dict[str, Any]:
        """What a record says of all that was sent in the first `rounds` rounds: ``epsilon``, ``delta``, …"""

    def learn(self, client: int, reply: Message) -> dict[str, float] | None:
        """Take note of a client's round; what the record of that client says, None where only the run has a cost."""
        return None

    def book(self) -> dict[str, Any]:
        """What lasts from round to round, for a checkpoint."""
        return {}

    def restore(self, book: Mapping[str, Any]) -> None:
        """Take over the `book` of a checkpoint."""
