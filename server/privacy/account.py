"""The account of a run's privacy, round by round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from flwr.app import Message


class Account(ABC):
    """Base of the accounts of the privacy spent so far."""

    @abstractmethod
    def spent(self, rounds: int) -> dict[str, Any]:
        """The privacy spent by all that was sent in the first `rounds` rounds: ``epsilon``, ``delta``, …"""

    def learn(self, client: int, reply: Message) -> dict[str, float] | None:
        """Add a client's round; returns fields of that client's record, or None where only the whole run has an ε."""
        return None

    def book(self) -> dict[str, Any]:
        """What lasts from round to round, for a checkpoint."""
        return {}

    def restore(self, book: Mapping[str, Any]) -> None:
        """Take over the `book` of a checkpoint."""
