"""Ray workers that one run leaves and the next one takes over, since every new one imports PyTorch for seconds.

A worker builds its client app anew for every grid, from what the grid sends it, so it makes no difference to a run.
Tests of the engine itself, and of modules that change between two runs, have workers of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from fedlab.engine.workers import WorkerPool


class SpareWorkers:
    """Idle actors by what they were made with."""

    def __init__(self) -> None:
        self._actors: dict[tuple[int, float], list[Any]] = defaultdict(list)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """A context in which grids take workers from here, and leave here those that are idle when they are closed."""
        new_actor, close = WorkerPool._new_actor, WorkerPool.close

        def taken(pool: WorkerPool) -> Any:
            spare = self._actors[pool._threads, pool._gpu_share]
            return spare.pop() if spare else new_actor(pool)

        def left(pool: WorkerPool) -> None:
            for worker in pool.idle:
                if not worker.kept:
                    self._actors[pool._threads, worker.gpu_share].append(worker.actor)
            pool.idle = [worker for worker in pool.idle if worker.kept]
            close(pool)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WorkerPool, "_new_actor", taken)
            patch.setattr(WorkerPool, "close", left)
            yield

    def dismiss(self) -> None:
        """Make room for grids with workers of their own."""
        for actors in self._actors.values():
            for actor in actors:
                ray.kill(actor)
        self._actors.clear()
