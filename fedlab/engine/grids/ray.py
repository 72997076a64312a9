"""Clients on Ray actors: the cores and GPUs of this machine or of a cluster.

The grid divides the messages it is given into chunks. A chunk is in one of these states until it is finished::

             _submit            _launch             _finished (1)
    (none) -----------> queued ----------> running ---------------> finished
                          ^  ^                |  |                     ^
                          |  |  _lost (3),    |  |                     |
                          |  |  _retreat (4)  |  | _finished (2)       | _finished (5)
                          |  +----------------+  v                     |
                          +-------------------- kept ------------------+
                              _repeat (6)

1. The worker has returned the replies, and their sum if there is one.
2. The worker has returned the replies but keeps their sum, because it will run more chunks of the same dispatch.
3. The worker has died. Its clients are queued one by one, so that one of them that kills every worker it is given to is
   found; that one ends as an error reply once it has been tried often enough.
4. The device was out of memory. The clients that are left are queued, and half as many workers go on.
5. The worker has handed its sum over, with a later chunk or with an empty one that only fetches it.
6. The worker is gone, and the sum with it.

`_cancel` drops the chunks of a dispatch whatever their state. `fedlab.engine.workers` draws the states of a worker.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import ray
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from ray.exceptions import RayError

from fedlab.config import EngineConfig
from fedlab.engine import cluster
from fedlab.engine.dispatch import Chunk, Dispatch, Payload
from fedlab.engine.execution import ChunkResult, client_of
from fedlab.engine.grids.base import SimulationGrid
from fedlab.engine.placement import Placement
from fedlab.engine.scheduling import plan_chunks
from fedlab.engine.simulation import NOBODY, Listeners, Simulation
from fedlab.engine.workers import Finished, Worker, WorkerPool, WorkerTask

log = logging.getLogger(__name__)

_DEATHS = 10  # of each worker in one call, after which clients are not run again


class RayGrid(SimulationGrid):
    """A grid on Ray actors that live as long as the grid.

    The content that messages share is put into Ray's object store once, however many clients it goes to. A chunk goes
    to whichever worker is free. A worker keeps the sum of the replies' arrays from one chunk to the next, and hands it
    over when nothing is left for it to do.

    Args:
        simulation: the clients.
        config: the configuration's section ``engine``; ``threads``, ``chunk``, ``retries``, ``address`` and
            ``vectorize`` are used. If it names no address, Ray is started here, unless the program has done so already.
        placement: number of workers, fewer of which are started if the cluster has no room for them, and the share of a
            GPU that each of them reserves.
        listeners: who is told how the work goes on.
        start_timeout: seconds that a worker may take to start.

    Raises:
        MachineError: there is no cluster at the address, or no worker could be started.
    """

    def __init__(
        self,
        simulation: Simulation,
        config: EngineConfig,
        placement: Placement,
        listeners: Listeners = NOBODY,
        *,
        start_timeout: float = 120.0,
    ) -> None:
        super().__init__(simulation, config, listeners)
        self._chunk, self._retries = config.chunk, config.retries
        self._queue: deque[Chunk] = deque()
        self._content_refs: weakref.WeakKeyDictionary[Payload, Any] = weakref.WeakKeyDictionary()
        self._pool = WorkerPool(simulation, config.threads, placement.gpus_per_worker, start_timeout)
        self._started_ray = cluster.connect(placement.workers * config.threads, config.address)
        if listeners.on_stuck is not None:
            cluster.on_stuck(listeners.on_stuck)
        try:
            self._pool.open(cluster.room_for(placement.workers, config.threads, placement.gpus_per_worker))
        except RayError as error:
            self.close()
            raise cluster.broken(error) from error
        except BaseException:
            self.close()
            raise

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are up."""
        return sorted(worker.pid for worker in self._pool.up)

    def close(self) -> None:
        cluster.stop_watching()
        self._pool.close()
        self._queue.clear()
        self._content_refs.clear()
        if self._started_ray:
            self._started_ray = False
            cluster.disconnect()

    def _plan(self, units: Sequence[float], total: float | None, overhead: float) -> list[list[int]]:
        if self._chunk is None:
            return plan_chunks(units, total, self._pool.size, overhead)
        order = sorted(range(len(units)), key=lambda place: -units[place])
        return [order[start : start + self._chunk] for start in range(0, len(order), self._chunk)]

    def _submit(self, chunks: Iterable[Chunk]) -> None:
        self._queue.extend(chunks)
        self._assign()

    def _collect(self, timeout: float | None) -> Finished:
        self._assign()
        finished = self._wait(timeout)
        # The workers go on while the caller looks at the results. The new states of these clients are not stored yet,
        # so their next messages must wait.
        self._assign(frozenset(client for chunk, _ in finished for client in chunk.clients))
        return finished

    def _await_workers(self) -> bool:
        self._assign()
        waited = False
        while self._pool.coming and not self._pool.up:
            self._wait(None)
            waited = True
        return waited

    def _cancel(self, dispatch: Dispatch) -> None:
        self._queue = deque(chunk for chunk in self._queue if chunk.dispatch is not dispatch)
        self._pool.stop([ref for ref, task in self._pool.running.items() if task.chunk.dispatch is dispatch])
        for worker in self._pool.up:
            if worker.kept and worker.kept[0][0].dispatch is dispatch:
                worker.release()

    def _assign(self, unsettled: frozenset[int] = frozenset()) -> None:
        """Give queued chunks to idle workers.

        Args:
            unsettled: clients that may not be given out now.
        """
        pool = self._pool
        if self._queue:
            pool.fill()
        self._fetch_sums([worker for worker in pool.idle if worker.must_hand_over(self._queue)])
        # the messages of one client are handled in order and never at the same time
        kept = (chunk.clients for worker in pool.up for chunk, _ in worker.kept)
        taken = unsettled.union(*kept, *(task.chunk.clients for task in pool.running.values()))
        waiting, ready = deque[Chunk](), list[Chunk]()
        while self._queue and len(ready) < len(pool.idle):
            chunk = self._queue.popleft()
            (ready if taken.isdisjoint(chunk.clients) else waiting).append(chunk)
            taken |= chunk.clients
        self._queue.extendleft(reversed(waiting))
        for chunk in ready:
            self._launch(pool.idle[-1], chunk)
        # whatever is still queued waits for clients whose chunks these workers keep
        self._fetch_sums([worker for worker in pool.idle if worker.kept])

    def _launch(self, worker: Worker, chunk: Chunk) -> None:
        payload, dispatch = chunk.payload, chunk.dispatch
        if payload not in self._content_refs:
            self._content_refs[payload] = ray.put(payload.content)
        more = bool(chunk.messages) and any(queued.dispatch is dispatch for queued in self._queue)
        keep = more and payload.reduction is not None and dispatch.keeps_sums and not chunk.vectorized
        self._pool.run(
            WorkerTask(worker, chunk, keep),
            self._content_refs[payload],
            [message.metadata for message in chunk.messages],
            self._states_of(chunk),
            payload.reduction,
            dispatch.stop_at_error,
            dispatch.number,
        )

    def _fetch_sums(self, workers: Iterable[Worker]) -> None:
        """Let idle workers return the sums they keep, by an empty chunk each."""
        for worker in workers:
            self._launch(worker, worker.kept[-1][0].part([]))

    def _wait(self, timeout: float | None) -> Finished:
        found = self._pool.wait(timeout)
        if found is None:
            return []
        task, result = found
        return self._finished(task, result) if isinstance(result, ChunkResult) else self._lost(task, result)

    def _finished(self, task: WorkerTask, result: ChunkResult) -> Finished:
        worker, chunk = task.worker, task.chunk
        if result.out_of_memory is not None:
            chunk, result = self._retreat(chunk, result)
        finished = [(chunk, result)]
        if task.keep:
            worker.keep(chunk, result)
            failed = chunk.dispatch.stop_at_error and any(reply.has_error() for reply in result.replies)
            finished = worker.release() if failed else []  # after an error nobody asks for the sum
        elif chunk.payload.reduction is not None:
            finished = [*worker.release(), *finished]
        self._repeat(worker, self._pool.settle(worker))
        return finished

    def _retreat(self, chunk: Chunk, result: ChunkResult) -> tuple[Chunk, ChunkResult]:
        """Go on with fewer workers after one of them ran out of memory.

        Returns:
            The part of the chunk that is done, and its result; the rest is queued again.
        """
        if self._pool.size == 1:
            hint = "a single worker is too many; lower training.batch_size, engine.vectorize or engine.resident"
            return chunk, self._without_memory(chunk, result, hint)
        if chunk.vectorized:  # the same clients must train as one batch again
            result = ChunkResult()
        answered = len(result.replies)
        done, left = chunk.part(chunk.messages[:answered]), chunk
        if answered:
            left = chunk.part(chunk.messages[answered:])
        shrunk = self._pool.shrink()
        log.warning("out of memory: %d workers go on; repeating clients %s", self._pool.size, sorted(left.clients))
        for worker, lost in shrunk:
            self._repeat(worker, lost)
        self._queue.appendleft(left)
        return done, result

    def _repeat(self, worker: Worker, chunks: Sequence[Chunk]) -> None:
        if chunks:
            clients = sorted(client for chunk in chunks for client in chunk.clients)
            log.warning("worker %d is gone; repeating clients %s", worker.pid, clients)
            self._queue.extendleft(reversed(chunks))

    def _lost(self, task: WorkerTask, error: RayError) -> Finished:
        worker, chunk = task.worker, task.chunk
        self._repeat(worker, self._pool.dismiss(worker))
        # Idle workers may have died as well, for example with their node. An empty chunk tells, before one of them is
        # given a client that would then have been tried once more without having been run.
        for idle in list(self._pool.idle):
            self._launch(idle, chunk.part([]))
        chunk.dispatch.deaths += 1
        # a worker that dies after each chunk loses the sum of those before, which would be repeated for ever
        hopeless = chunk.dispatch.deaths > _DEATHS * (self._retries + 1) * max(1, self._pool.size)
        if chunk.attempt <= self._retries and not hopeless:
            parts = [chunk.messages] if chunk.vectorized else [[message] for message in chunk.messages]
            self._repeat(worker, [replace(chunk.part(part), attempt=chunk.attempt + 1) for part in parts])
            return []
        replies = []
        for message in chunk.messages:
            client = client_of(message.metadata.dst_node_id)
            reason = (
                f"the worker process {worker.pid} died while it ran client {client} "
                f"(attempt {chunk.attempt} of {self._retries + 1}). Usual causes: out of memory, or a crash in native "
                f"code; engine.workers: 1 or engine.name: inline shows which.\n{error}"
            )
            replies.append(Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message))
        return [(chunk, ChunkResult(replies))]
