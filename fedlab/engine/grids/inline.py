"""Every client in this process, one after the other: debugging, tests, ordinary tracebacks."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence

from fedlab.config import EngineConfig
from fedlab.engine.dispatch import Chunk, Dispatch
from fedlab.engine.execution import ChunkResult, ClientRunner
from fedlab.engine.grids.base import SimulationGrid
from fedlab.engine.limit import OverdueError
from fedlab.engine.simulation import NOBODY, Listeners, Simulation

log = logging.getLogger(__name__)


class InlineGrid(SimulationGrid):
    """A grid without workers. Messages that were pushed are handled when their replies are pulled.

    A client that is at work when the time of a call is up is ended there, see `fedlab.engine.limit.limited`.

    Args:
        simulation: the clients. The factory is called once, here.
        config: the configuration's section ``engine``, of which ``vectorize`` is used; its defaults if None.
        listeners: who is told how the work goes on.
    """

    def __init__(
        self, simulation: Simulation, config: EngineConfig | None = None, listeners: Listeners = NOBODY
    ) -> None:
        super().__init__(simulation, config or EngineConfig(name="inline"), listeners)
        self._runner = ClientRunner(simulation.factory(), simulation.num_clients, simulation.run_config)
        self._queue: deque[Chunk] = deque()

    def close(self) -> None:
        self._queue.clear()

    def _plan(self, units: Sequence[float], total: float | None, overhead: float) -> list[list[int]]:
        return [[place] for place in range(len(units))]

    def _submit(self, chunks: Iterable[Chunk]) -> None:
        self._queue.extend(chunks)

    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        if not self._queue:
            return []
        chunk = self._queue.popleft()
        payload, dispatch = chunk.payload, chunk.dispatch
        metadatas = [message.metadata for message in chunk.messages]
        states, reduction = self._states_of(chunk), payload.reduction
        self._runner.seconds = timeout or None
        try:
            result = self._runner.run_chunk(
                payload.content,
                metadatas,
                states,
                reduction,
                dispatch.total,
                dispatch.stop_at_error,
                payload.inspect,
            )
        except OverdueError:  # the caller sees by its own clock that the time is up
            log.warning("client %s was ended after its time", sorted(chunk.clients))
            return []
        if result.out_of_memory is not None:
            hint = "lower training.batch_size, engine.vectorize or engine.resident"
            result = self._without_memory(chunk, result, hint)
        return [(chunk, result)]

    def _cancel(self, dispatch: Dispatch) -> None:
        self._queue = deque(chunk for chunk in self._queue if chunk.dispatch is not dispatch)
