"""Clients on Ray actors: the cores and GPUs of this machine or of a cluster."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.user_config import UserConfig
from flwr.common.constant import ErrorCode
from ray.exceptions import RayError, RayTaskError

from fedlab.engine.execution import ChunkResult, ClientAppFactory, ClientRunner, client_of, set_task_identity
from fedlab.engine.grid import Batch, Chunk, Payload, Progress, SimulationGrid, WorkDone
from fedlab.engine.machine import pin_threads
from fedlab.engine.memory import limit_memory
from fedlab.engine.placement import plan_chunks
from fedlab.engine.reduction import Reduction
from fedlab.errors import MachineError

log = logging.getLogger(__name__)


class ClientWorker:
    """What a Ray actor runs: one client app, kept for the whole run with whatever it holds in memory."""

    def __init__(self, threads: int, gpu_share: float) -> None:
        pin_threads(threads)
        set_task_identity()
        self.limit_memory(gpu_share)

    def limit_memory(self, gpu_share: float) -> None:
        """Bound this process's memory on its GPU by its share of it; 0 is a worker without a GPU."""
        limit_memory(gpu_share)

    def start(self, factory: ClientAppFactory, num_clients: int, run_config: UserConfig) -> int:
        """Build the client app; returns the process id."""
        self._runner = ClientRunner(factory(), num_clients, run_config)
        return os.getpid()

    def run_chunk(
        self,
        content: RecordDict,
        metadatas: Sequence[Metadata],
        states: Mapping[int, bytes],
        reduction: Reduction | None,
        stop_at_error: bool,
    ) -> ChunkResult:
        """See `ClientRunner.run_chunk`."""
        return self._runner.run_chunk(content, metadatas, states, reduction, stop_at_error=stop_at_error)


@dataclass(eq=False)
class _Worker:
    actor: Any
    patience_ends: float
    gpu_share: float
    lane: int
    pid: int = 0


class RayGrid(SimulationGrid):
    """A grid on long-lived Ray actors.

    A payload is put into the object store once, however many clients get it, and chunks of clients go to whichever
    worker is free. A worker that dies is replaced and its clients are repeated one by one; a client that takes its
    workers with it ends as an error reply.

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
        together: see `SimulationGrid`.

    Raises:
        MachineError: no cluster at `address`, or no worker could be started.
    """

    def __init__(
        self,
        factory: ClientAppFactory,
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
        together: int | None = None,
    ) -> None:
        super().__init__(num_clients, on_progress=on_progress, on_work=on_work, fail_fast=fail_fast, together=together)
        self._chunk, self._retries, self._start_timeout = chunk, retries, start_timeout
        self._queue: deque[Chunk] = deque()
        self._idle: list[_Worker] = []
        self._starting: dict[Any, _Worker] = {}
        self._running: dict[Any, tuple[_Worker, Chunk]] = {}
        self._content_refs: weakref.WeakKeyDictionary[Payload, Any] = weakref.WeakKeyDictionary()
        self._started_ray = _init_ray(workers * threads, address)
        try:
            self._size = _fitting(workers, threads, gpus_per_worker)
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

    def _up(self) -> list[_Worker]:
        return [*self._idle, *(worker for worker, _ in self._running.values())]

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

    def _cancel(self, batch: Batch) -> None:
        self._queue = deque(chunk for chunk in self._queue if chunk.batch is not batch)
        for ref in [ref for ref, (_, chunk) in self._running.items() if chunk.batch is batch]:
            worker, _ = self._running.pop(ref)
            ray.kill(worker.actor)  # Ray cannot interrupt an actor; it is replaced when there is work again

    def _dispatch(self, unsettled: frozenset[int] = frozenset()) -> None:
        while self._queue and len(self._idle) + len(self._starting) + len(self._running) < self._size:
            self._start_worker()
        # a client's messages are run in order and never at the same time
        taken = unsettled.union(*(chunk.clients for _, chunk in self._running.values()))
        waiting: deque[Chunk] = deque()
        while self._queue and self._idle:
            chunk = self._queue.popleft()
            if taken.isdisjoint(chunk.clients):
                self._launch(self._idle.pop(), chunk)
            else:
                waiting.append(chunk)
            taken |= chunk.clients
        self._queue.extendleft(reversed(waiting))

    def _launch(self, worker: _Worker, chunk: Chunk) -> None:
        payload = chunk.payload
        if payload not in self._content_refs:
            self._content_refs[payload] = ray.put(payload.content)
        metadatas = [message.metadata for message in chunk.messages]
        ref = worker.actor.run_chunk.remote(
            self._content_refs[payload],
            metadatas,
            self._states_of(chunk),
            payload.reduction,
            chunk.batch.stop_at_error,
        )
        self._running[ref] = (worker, chunk)

    def _wait(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        if not self._running and not self._starting:
            return []
        patience = [worker.patience_ends - time.monotonic() for worker in self._starting.values()]
        limits = [*patience, *([] if timeout is None else [timeout])]
        refs = [*self._running, *self._starting]
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
        self._starting[ref] = _Worker(actor, time.monotonic() + self._start_timeout, self._gpu_share, lane)

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
                f"room on the cluster: {_free('CPU')} CPUs and {_free('GPU')} GPUs are free",
                "look at Ray's logs (/tmp/ray/session_latest/logs), free the machine, or set engine.name: inline",
            )
        log.warning("a worker could not be started and %d go on without it: %s", self._size, reason)

    def _finished(self, ref: Any) -> list[tuple[Chunk, ChunkResult]]:
        worker, chunk = self._running.pop(ref)
        try:
            result: ChunkResult = ray.get(ref)
        except RayTaskError as error:  # clients' exceptions are replies: this one is the engine's own
            self._idle.append(worker)
            raise error.cause from error
        except RayError as error:
            ray.kill(worker.actor)
            return self._lost(worker, chunk, error)
        result.worker = worker.lane
        kept = result if result.out_of_memory is None else self._retreat(chunk, result)
        self._settle(worker)
        return [] if kept is None else [(chunk, kept)]

    def _retreat(self, chunk: Chunk, result: ChunkResult) -> ChunkResult | None:
        """Half as many workers, each with twice the memory, and the chunk once more; its result if that cannot be."""
        if self._size == 1:
            hint = "a single worker is too many; lower training.batch_size, engine.vectorise or engine.resident"
            return self._without_memory(chunk, result, hint)
        self._size = self._size // 2
        self._gpu_share = min(1.0, 2 * self._gpu_share)
        log.warning("out of memory: %d workers go on; repeating clients %s", self._size, sorted(chunk.clients))
        idle, self._idle = self._idle, []
        for worker in idle:
            self._settle(worker)
        self._queue.appendleft(chunk)
        return None

    def _settle(self, worker: _Worker) -> None:
        """Let a worker that is done wait for work, unless there are more than there should be by now."""
        if len(self._idle) + len(self._running) >= self._size:
            ray.kill(worker.actor)
            return
        if worker.gpu_share != self._gpu_share:
            worker.gpu_share = self._gpu_share
            worker.actor.limit_memory.remote(self._gpu_share)
        self._idle.append(worker)

    def _lost(self, worker: _Worker, chunk: Chunk, error: RayError) -> list[tuple[Chunk, ChunkResult]]:
        clients = sorted(chunk.clients)
        if chunk.attempt <= self._retries:
            log.warning("worker %d died; repeating clients %s", worker.pid, clients)
            parts = [chunk.messages] if chunk.together else [[message] for message in chunk.messages]
            again = [replace(chunk, messages=part, attempt=chunk.attempt + 1) for part in parts]
            self._queue.extendleft(reversed(again))
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


def _init_ray(cpus: int, address: str | None) -> bool:
    """Connect to Ray unless the program has; returns whether it was done here."""
    if ray.is_initialized():
        return False
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        with _own_sigterm():
            # "local": Ray would rather join whatever cluster somebody has started on this machine
            ray.init(address="local", num_cpus=cpus, **quiet)
        return True
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MachineError(
            "engine.address", address, "the address of a running Ray cluster", f"start one with ray start: {error}"
        ) from error
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the program's handler of SIGTERM: Ray's prints a native stack trace and can abort the process at its end."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _fitting(workers: int, threads: int, gpus: float) -> int:
    """How many of the workers the cluster has room for."""
    room = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        by_cpu = int(has.get("CPU", 0) // threads)
        room += min(by_cpu, int(has.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu
    if room == 0:
        raise MachineError(
            "engine.workers",
            workers,
            f"a node with {threads} CPUs and {gpus:g} GPUs for each; no worker could be started: {workers * threads} "
            f"CPUs asked, the cluster has {_total('CPU')} CPUs and {_total('GPU')} GPUs",
            "lower engine.threads or engine.gpus_per_worker, or add nodes",
        )
    if room < workers:
        log.warning("engine.workers = %d, but the cluster has room for %d", workers, room)
    return min(room, workers)


def _total(resource: str) -> str:
    return f"{ray.cluster_resources().get(resource, 0):g}"


def _free(resource: str) -> str:
    return f"{ray.available_resources().get(resource, 0):g} of {_total(resource)}"
