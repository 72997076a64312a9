"""The Ray actor that runs clients in a process of its own."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence

from flwr.app import Metadata, RecordDict

from fedlab.engine.execution import ChunkResult, ClientRunner, Inspect, set_task_identity
from fedlab.engine.machine import settle_process
from fedlab.engine.memory import limit_memory
from fedlab.engine.simulation import Simulation
from fedlab.protocol.sums import ExactSum, Reduction


class ClientWorker:
    """The class of the actor. It keeps one client app, and whatever that holds in memory, for the whole run.

    Args:
        threads: number of threads that torch and BLAS may use in this process.
        gpu_share: see `limit_memory`.
    """

    def __init__(self, threads: int, gpu_share: float) -> None:
        settle_process(threads)
        set_task_identity()
        self.limit_memory(gpu_share)
        self._kept: tuple[int, ExactSum | None] | None = None  # number of a dispatch, and its sum so far

    def limit_memory(self, gpu_share: float) -> None:
        """Bound the memory that this process may take of its GPU.

        Args:
            gpu_share: the worker's share of a GPU, from 0 to 1; 0 is a worker without a GPU.
        """
        limit_memory(gpu_share)

    def start(self, simulation: Simulation) -> int:
        """Build the client app, and return the process id."""
        self._runner = ClientRunner(simulation.factory(), simulation.num_clients, simulation.run_config)
        # What has been loaded by now stays in memory. If the garbage collector went through it again and again, a
        # client with little work would take 5 % longer.
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
        dispatch: int,
        keep: bool,
        inspect: Inspect | None = None,
    ) -> ChunkResult:
        """Run a chunk of messages; see `ClientRunner.run_chunk`.

        Args:
            content: content of all the messages.
            metadatas: one for each message; empty for a chunk that only fetches the sum kept here.
            states: packed state by client, for the clients that have one.
            reduction: how the replies' arrays are to be summed; None leaves them in the replies.
            stop_at_error: leave out the messages after the first error.
            dispatch: number of the dispatch that the chunk is part of. If a sum of this dispatch is kept here, the
                replies' arrays are added to it.
            keep: keep the sum here, for the next chunk of the dispatch, instead of returning it.
            inspect: checks every reply; None believes them.
        """
        total = None
        if reduction is not None and self._kept is not None:
            number, kept = self._kept
            total = kept if number == dispatch else None  # the sum of a dispatch that was canceled is never asked for
            self._kept = None
        result = self._runner.run_chunk(content, metadatas, states, reduction, total, stop_at_error, inspect)
        if keep:
            self._kept, result.total = (dispatch, result.total), None
        return result
