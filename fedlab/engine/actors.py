"""An actor that runs clients, and what the grid knows of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Metadata, RecordDict
from flwr.app.user_config import UserConfig

from fedlab.engine.dispatch import Chunk
from fedlab.engine.execution import AppFactory, ChunkResult, ClientRunner, set_task_identity
from fedlab.engine.machine import settle_process
from fedlab.engine.memory import limit_memory
from fedlab.engine.scheduling import LONGEST_CHUNK
from fedlab.protocol.sums import ExactSum, Reduction


class ClientWorker:
    """What a Ray actor runs: one client app, kept for the whole run with whatever it holds in memory."""

    def __init__(self, threads: int, gpu_share: float) -> None:
        settle_process(threads)
        set_task_identity()
        self.limit_memory(gpu_share)
        self._kept: tuple[int, ExactSum | None] | None = None

    def limit_memory(self, gpu_share: float) -> None:
        """Bound this process's memory on its GPU by its share of it; 0 is a worker without a GPU."""
        limit_memory(gpu_share)

    def start(self, factory: AppFactory, num_clients: int, run_config: UserConfig) -> int:
        """Build the client app; returns the process id."""
        self._runner = ClientRunner(factory(), num_clients, run_config)
        # what is here by now stays: looking through it for garbage again and again would cost a cheap client 5 %
        gc.collect()
        gc.freeze()
        return os.getpid()

    def run_chunk(
        self,
        content: RecordDict,
        metadatas: Sequence[Metadata],
        states: Mapping[int, bytes],
        reduction: Reduction | None,
        stop_at_error: bool,
        batch: int,
        keep: bool,
    ) -> ChunkResult:
        """See `ClientRunner.run_chunk`.

        Args:
            batch: the replies' arrays are added to what is kept of this batch.
            keep: the sum stays here for the batch's next chunk, which may be an empty one that only fetches it.
        """
        total = None
        if reduction is not None and self._kept is not None and self._kept[0] == batch:
            (_, total), self._kept = self._kept, None
        result = self._runner.run_chunk(content, metadatas, states, reduction, total, stop_at_error)
        if keep:
            self._kept, result.total = (batch, result.total), None
        return result


@dataclass(eq=False)
class Worker:
    """An actor, and chunks it has finished but whose sum it still keeps."""

    actor: Any
    patience_ends: float
    gpu_share: float
    lane: int
    pid: int = 0
    kept: list[tuple[Chunk, ChunkResult]] = field(default_factory=list)

    def is_due(self, queue: Iterable[Chunk]) -> bool:
        """It should hand its sum over: there is none to come, or with it too much would be lost."""
        if not self.kept:
            return False
        batch = self.kept[0][0].batch
        spent = sum(span.seconds for _, result in self.kept for span in result.spans)
        return spent >= LONGEST_CHUNK or not batch.keeps_sums or all(chunk.batch is not batch for chunk in queue)

    def release(self) -> list[tuple[Chunk, ChunkResult]]:
        """The chunks whose sum is handed over, or lost."""
        released, self.kept = self.kept, []
        for chunk, result in released:
            chunk.batch.kept -= len(result.replies)
        return released


@dataclass(eq=False)
class WorkerTask:
    """A chunk at an actor, which keeps its sum or not."""

    worker: Worker
    chunk: Chunk
    keep: bool
