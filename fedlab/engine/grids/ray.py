"""Clients on Ray actors: the cores and GPUs of this machine or of a cluster."""

from __future__ import annotations

import itertools
import logging
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import ray
from flwr.app import Error, Message
from flwr.app.user_config import UserConfig
from flwr.common.constant import ErrorCode
from ray.exceptions import RayError, RayTaskError

from fedlab.engine import cluster
from fedlab.engine.actors import ClientWorker, Worker, WorkerTask
from fedlab.engine.dispatch import Chunk, Dispatch, Payload
from fedlab.engine.execution import AppFactory, ChunkResult, client_of
from fedlab.engine.grids.base import Progress, SimulationGrid, WorkDone
from fedlab.engine.scheduling import plan_chunks
from fedlab.errors import MachineError

log = logging.getLogger(__name__)


class RayGrid(SimulationGrid):
    """A grid on long-lived Ray actors.

    A payload is put into the object store once, however many clients get it, and chunks of clients go to whichever
    worker is free. Workers keep their sum of the replies' arrays from chunk to chunk and hand it over when nothing is
    left for them to do. A worker that dies is replaced, its clients are repeated one by one and so are the chunks whose
    sum went with it; a client that takes its workers with it ends as an error reply.

    Args:
        factory: builds the client app; called once in every worker. Pickled by value if defined in a script.
        num_clients: clients of the federation.
        run_config: given to every client.
        workers: processes to start; fewer if the cluster has no room for them.
        threads: torch and BLAS threads of a worker, and the CPUs it reserves.
        gpus_per_worker: GPUs a worker reserves.
        chunk: clients per dispatch; by default what is left is divided by how long it takes, see `plan_chunks`.
        retries: how often a client whose worker died is repeated.
        address: of a running Ray cluster; by default Ray is started here, unless the program has done so already.
        start_timeout: seconds a worker may take to start.
        on_progress: see `SimulationGrid`.
        on_work: see `SimulationGrid`; a worker that replaces another takes its number.
        fail_fast: see `SimulationGrid`.
        vectorized: see `SimulationGrid`.

    Raises:
        MachineError: no cluster at `address`, or no worker could be started.
    """

    def __init__(
        self,
        factory: AppFactory,
        num_clients: int,
        run_config: UserConfig | None = None,
        *,
        workers: int,
        threads: int = 1,
        gpus_per_worker: float = 0.0,
        chunk: int | None = None,
        retries: int = 1,
        address: str | None = None,
        start_timeout: float = 120.0,
        on_progress: Progress | None = None,
        on_work: WorkDone | None = None,
        fail_fast: bool = False,
        vectorized: int | None = None,
    ) -> None:
        super().__init__(
            num_clients, on_progress=on_progress, on_work=on_work, fail_fast=fail_fast, vectorized=vectorized
        )
        self._chunk, self._retries, self._start_timeout = chunk, retries, start_timeout
        self._queue: deque[Chunk] = deque()
        self._idle: list[Worker] = []
        self._starting: dict[Any, Worker] = {}
        self._running: dict[Any, WorkerTask] = {}
        self._content_refs: weakref.WeakKeyDictionary[Payload, Any] = weakref.WeakKeyDictionary()
        self._started_ray = cluster.connect(workers * threads, address)
        try:
            self._size = cluster.room_for(workers, threads, gpus_per_worker)
            self._threads, self._gpu_share = threads, gpus_per_worker
            self._arguments = (ray.put(factory), num_clients, run_config or {})
            for _ in range(self._size):
                self._start_worker()
            while not self._idle:  # the others join as they come up
                self._wait(None)
        except BaseException:
            self.close()
            raise

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are up."""
        return sorted(worker.pid for worker in self._up())

    def _up(self) -> list[Worker]:
        return [*self._idle, *(work.worker for work in self._running.values())]

    def close(self) -> None:
        if ray.is_initialized():
            for worker in [*self._up(), *self._starting.values()]:
                ray.kill(worker.actor)
        self._idle, self._starting, self._running, self._queue = [], {}, {}, deque()
        self._content_refs.clear()
        if self._started_ray:
            self._started_ray = False
            ray.shutdown()

    def _plan(self, units: Sequence[float], total: float | None, overhead: float) -> list[list[int]]:
        if self._chunk is None:
            return plan_chunks(units, total, self._size, overhead)
        order = sorted(range(len(units)), key=lambda place: -units[place])
        return [order[start : start + self._chunk] for start in range(0, len(order), self._chunk)]

    def _submit(self, chunks: Iterable[Chunk]) -> None:
        self._queue.extend(chunks)
        self._dispatch()

    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        self._dispatch()
        finished = self._wait(timeout)
        # the workers go on while the caller looks at the results; their clients' new states are not stored yet
        self._dispatch(frozenset(client for chunk, _ in finished for client in chunk.clients))
        return finished

    def _await_workers(self) -> None:
        self._dispatch()
        while self._starting and not self._up():
            self._wait(None)

    def _cancel(self, batch: Dispatch) -> None:
        self._queue = deque(chunk for chunk in self._queue if chunk.batch is not batch)
        for ref in [ref for ref, work in self._running.items() if work.chunk.batch is batch]:
            ray.kill(self._running.pop(ref).worker.actor)  # Ray cannot interrupt an actor; replaced when there is work
        for worker in self._up():
            if worker.kept and worker.kept[0][0].batch is batch:
                worker.release()

    def _dispatch(self, unsettled: frozenset[int] = frozenset()) -> None:
        while self._queue and len(self._up()) + len(self._starting) < self._size:
            self._start_worker()
        self._hand_over([worker for worker in self._idle if worker.is_due(self._queue)])
        # a client's messages are run in order and never at the same time
        kept = (chunk.clients for worker in self._up() for chunk, _ in worker.kept)
        taken = unsettled.union(*kept, *(work.chunk.clients for work in self._running.values()))
        waiting, ready = deque[Chunk](), list[Chunk]()
        while self._queue and len(ready) < len(self._idle):
            chunk = self._queue.popleft()
            (ready if taken.isdisjoint(chunk.clients) else waiting).append(chunk)
            taken |= chunk.clients
        self._queue.extendleft(reversed(waiting))
        for chunk in ready:
            self._launch(self._idle.pop(), chunk)
        self._hand_over([worker for worker in self._idle if worker.kept])  # what is queued waits for their clients

    def _launch(self, worker: Worker, chunk: Chunk) -> None:
        payload, batch = chunk.payload, chunk.batch
        if payload not in self._content_refs:
            self._content_refs[payload] = ray.put(payload.content)
        more = bool(chunk.messages) and any(queued.batch is batch for queued in self._queue)
        keep = more and payload.reduction is not None and batch.keeps_sums and not chunk.vectorized
        ref = worker.actor.run_chunk.remote(
            self._content_refs[payload],
            [message.metadata for message in chunk.messages],
            self._states_of(chunk),
            payload.reduction,
            batch.stop_at_error,
            batch.number,
            keep,
        )
        self._running[ref] = WorkerTask(worker, chunk, keep)

    def _hand_over(self, workers: Iterable[Worker]) -> None:
        """Fetch what workers keep, with a chunk without messages."""
        for worker in workers:
            self._idle.remove(worker)
            self._launch(worker, replace(worker.kept[-1][0], messages=[], units=0.0))

    def _wait(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        refs = [*self._running, *self._starting]
        if not refs:
            return []
        patience = [worker.patience_ends - time.monotonic() for worker in self._starting.values()]
        limits = [*patience, *([] if timeout is None else [timeout])]
        done, _ = ray.wait(refs, timeout=max(0.0, min(limits)) if limits else None)
        finished = []
        for ref in done:
            if ref in self._starting:
                self._started(ref)
            else:
                finished += self._finished(ref)
        for ref, worker in list(self._starting.items()):
            if worker.patience_ends <= time.monotonic():
                self._give_up(ref, f"it did not start within {self._start_timeout:g} s")
        return finished

    def _start_worker(self) -> None:
        kind = ray.remote(ClientWorker).options(num_cpus=self._threads, num_gpus=self._gpu_share)
        actor = kind.remote(self._threads, self._gpu_share)
        ref = actor.start.remote(*self._arguments)
        taken = {worker.lane for worker in [*self._up(), *self._starting.values()]}
        lane = next(lane for lane in itertools.count() if lane not in taken)
        self._starting[ref] = Worker(actor, time.monotonic() + self._start_timeout, self._gpu_share, lane)

    def _started(self, ref: Any) -> None:
        try:
            pid = ray.get(ref)
        except RayTaskError as error:  # the user's factory raised: that is the error to show
            raise error.cause from error
        except RayError as error:
            self._give_up(ref, str(error))
        else:
            worker = self._starting.pop(ref)
            worker.pid = pid
            self._settle(worker)

    def _give_up(self, ref: Any, reason: str) -> None:
        ray.kill(self._starting.pop(ref).actor)
        self._size -= 1
        if self._size == 0:
            raise MachineError(
                "engine.workers",
                f"no worker could be started: {reason}",
                f"room on the cluster: {cluster.free('CPU')} CPUs and {cluster.free('GPU')} GPUs are free",
                "look at Ray's logs (/tmp/ray/session_latest/logs), free the machine, or set engine.name: inline",
            )
        log.warning("a worker could not be started and %d go on without it: %s", self._size, reason)

    def _finished(self, ref: Any) -> list[tuple[Chunk, ChunkResult]]:
        work = self._running.pop(ref)
        worker, chunk = work.worker, work.chunk
        try:
            result: ChunkResult = ray.get(ref)
        except RayTaskError as error:  # clients' exceptions are replies: this one is the engine's own
            self._idle.append(worker)
            raise error.cause from error
        except RayError as error:
            return self._lost(worker, chunk, error)
        result.worker = worker.lane
        if result.out_of_memory is not None:
            chunk, result = self._retreat(chunk, result)
        finished = [(chunk, result)]
        if work.keep:
            worker.kept += finished
            chunk.batch.kept += len(result.replies)
            failed = chunk.batch.stop_at_error and any(reply.has_error() for reply in result.replies)
            finished = worker.release() if failed else []  # then nobody asks for the sum
        elif chunk.payload.reduction is not None:
            finished = [*worker.release(), *finished]
        self._settle(worker)
        return finished

    def _retreat(self, chunk: Chunk, result: ChunkResult) -> tuple[Chunk, ChunkResult]:
        """Leave the rest of a chunk to half as many workers, each with twice the memory; what has been done of it."""
        if self._size == 1:
            hint = "a single worker is too many; lower training.batch_size, engine.vectorize or engine.resident"
            return chunk, self._without_memory(chunk, result, hint)
        self._size = self._size // 2
        self._gpu_share = min(1.0, 2 * self._gpu_share)
        if chunk.vectorized:  # the same clients must train as one batch again
            result = ChunkResult()
        answered = len(result.replies)
        done = replace(chunk, messages=chunk.messages[:answered], units=0.0)
        left = replace(chunk, messages=chunk.messages[answered:], units=0.0) if answered else chunk
        log.warning("out of memory: %d workers go on; repeating clients %s", self._size, sorted(left.clients))
        idle, self._idle = self._idle, []
        for worker in idle:
            self._settle(worker)
        self._queue.appendleft(left)
        return done, result

    def _settle(self, worker: Worker) -> None:
        """Let a worker that is done wait for work, unless there are more than there should be by now."""
        if len(self._up()) >= self._size:
            self._dismiss(worker)
            return
        if worker.gpu_share != self._gpu_share:
            worker.gpu_share = self._gpu_share
            worker.actor.limit_memory.remote(self._gpu_share)
        self._idle.append(worker)

    def _dismiss(self, worker: Worker) -> None:
        """Kill a worker; what it keeps is done again."""
        ray.kill(worker.actor)
        self._repeat(worker, [chunk for chunk, _ in worker.release() if chunk.messages])

    def _repeat(self, worker: Worker, chunks: Sequence[Chunk]) -> None:
        if chunks:
            clients = sorted(client for chunk in chunks for client in chunk.clients)
            log.warning("worker %d is gone; repeating clients %s", worker.pid, clients)
            self._queue.extendleft(reversed(chunks))

    def _lost(self, worker: Worker, chunk: Chunk, error: RayError) -> list[tuple[Chunk, ChunkResult]]:
        self._dismiss(worker)
        if chunk.attempt <= self._retries:
            parts = [chunk.messages] if chunk.vectorized else [[message] for message in chunk.messages]
            self._repeat(worker, [replace(chunk, messages=part, attempt=chunk.attempt + 1) for part in parts])
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
