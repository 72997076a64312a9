"""What every engine is given, whichever it is: the simulated clients, and who wants to hear how the work goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # flwr takes a second to import
    from flwr.app.user_config import UserConfig
    from flwr.clientapp import ClientApp

    from fedlab.engine.scheduling import Span


@dataclass(frozen=True)
class Simulation:
    """The clients to simulate.

    Args:
        factory: builds the client app. It is called once in every process that runs clients, and pickled on its way
            there; Ray pickles it by value if it is defined in a script.
        num_clients: number of clients in the federation; they are numbered from 0.
        run_config: scalars that are given to the server and to every client.
        fail_fast: end a round at the first client that fails, without its other replies. Flower's own simulation
            ignores this.
    """

    factory: Callable[[], ClientApp]
    num_clients: int
    run_config: UserConfig = field(default_factory=dict)
    fail_fast: bool = False


@dataclass(frozen=True)
class Listeners:
    """Functions that the engine calls while it works. Flower's own simulation calls neither.

    Args:
        on_progress: called during a round with the number of replies so far and the number of messages sent.
        on_work: called with pairs of a worker's number, counted from 0, and the span of time in which it handled one
            client's message. A worker that replaces another one takes over its number.
        on_stuck: called from another thread with a sentence, before the engine ends this process because it cannot be
            ended in good order: Ray has died, and the call in which the program waits for it does not return.
    """

    on_progress: Callable[[int, int], None] | None = None
    on_work: Callable[[Sequence[tuple[int, Span]]], None] | None = None
    on_stuck: Callable[[str], None] | None = None


NOBODY = Listeners()
"""Nobody listens."""
