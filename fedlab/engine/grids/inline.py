"""Every client in this process, one after the other: debugging, tests, ordinary tracebacks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from flwr.app.user_config import UserConfig

from fedlab.engine.dispatch import Chunk, Dispatch
from fedlab.engine.execution import AppFactory, ChunkResult, ClientRunner
from fedlab.engine.grids.base import Progress, SimulationGrid, WorkDone


class InlineGrid(SimulationGrid):
    """A grid without workers. Pushed messages are run when replies are pulled.

    Args:
        factory: builds the client app; called once, here.
        num_clients: clients of the federation.
        run_config: given to every client.
        on_progress: see `SimulationGrid`.
        on_work: see `SimulationGrid`.
        fail_fast: see `SimulationGrid`.
        vectorized: see `SimulationGrid`.
    """

    def __init__(
        self,
        factory: AppFactory,
        num_clients: int,
        run_config: UserConfig | None = None,
        *,
        on_progress: Progress | None = None,
        on_work: WorkDone | None = None,
        fail_fast: bool = False,
        vectorized: int | None = None,
    ) -> None:
        super().__init__(
            num_clients, on_progress=on_progress, on_work=on_work, fail_fast=fail_fast, vectorized=vectorized
        )
        self._runner = ClientRunner(factory(), num_clients, run_config or {})
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
        payload = chunk.payload
        metadatas = [message.metadata for message in chunk.messages]
        states, batch = self._states_of(chunk), chunk.batch
        result = self._runner.run_chunk(
            payload.content, metadatas, states, payload.reduction, batch.total, batch.stop_at_error
        )
        if result.out_of_memory is not None:
            hint = "lower training.batch_size, engine.vectorize or engine.resident"
            result = self._without_memory(chunk, result, hint)
        return [(chunk, result)]

    def _cancel(self, batch: Dispatch) -> None:
        self._queue = deque(chunk for chunk in self._queue if chunk.batch is not batch)
