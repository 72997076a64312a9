"""Flower's ``flower-supernode``, which looks for messages more often while a run goes on.

Flower's SuperNode pauses for 3 s whenever there is no message for it, and for 0.5 s whenever the reply of its client is
not there yet. Every message of every round waits for both. Here the pauses are short for a while after each message.
Then they are Flower's again, so that nodes without work ask the server no more often than Flower's do.
"""

from __future__ import annotations

import time
from importlib import import_module
from types import ModuleType

LOOK = 0.5
"""Seconds between two looks for a message, each of which is a request to the server."""
REPLY = 0.1
"""Seconds between two looks for the reply of the node's own client."""
ACTIVE = 120.0
"""Seconds after the last message in which the next one is expected soon."""
_LOOP = "flwr.supernode.start_client_internal"
_IDLE = 1.0  # seconds; Flower's pauses for a reply are shorter, and those without a message longer


def main() -> None:
    """What ``flower-supernode`` does."""
    from flwr.supernode.cli import flower_supernode

    loop = import_module(_LOOP)
    loop.time = with_short_pauses(time)  # type: ignore[attr-defined]  # a module, of which no name is declared
    flower_supernode()


def with_short_pauses(clock: ModuleType) -> ModuleType:
    """The module ``time`` for the SuperNode's loop.

    Args:
        clock: the real one, or another with ``monotonic`` and ``sleep``.
    """
    worked = float("-inf")

    def sleep(seconds: float) -> None:
        nonlocal worked
        if seconds < _IDLE:
            worked = clock.monotonic()
            clock.sleep(min(seconds, REPLY))
        elif clock.monotonic() - worked < ACTIVE:
            clock.sleep(min(seconds, LOOK))
        else:
            clock.sleep(seconds)

    shortened = ModuleType(clock.__name__)
    vars(shortened).update({**vars(clock), "sleep": sleep})
    return shortened


if __name__ == "__main__":
    main()
