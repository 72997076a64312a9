"""The server's part of a simulated run, as the engine calls it."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid

from fedlab.server.asynchronous import make_loop
from fedlab.server.loop import FederatedLoop
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import Checkpoint


class SimulatedServer:
    """A server main for `fedlab.engine.launch` that can also be told how far the clients are.

    Args:
        setup: the run.
        until: the round after which to stop.
        start: where to go on from.
    """

    def __init__(self, setup: ServerSetup, until: int | None, start: Checkpoint | None) -> None:
        self._setup, self._until, self._start = setup, until, start
        self._loop: FederatedLoop | None = None

    def __call__(self, grid: Grid, context: Context) -> None:
        """Do the rounds.

        Raises:
            ClientError: a client failed and ``federation.on_client_error`` is ``stop``.
        """
        self._loop = make_loop(grid, self._setup)
        self._loop.run(self._until, self._start)

    def progress(self, done: int, total: int) -> None:
        """The engine's word on how far the present phase is; before the first phase nobody wants to know."""
        if self._loop is not None:
            self._loop.reporter.progress(done, total)
