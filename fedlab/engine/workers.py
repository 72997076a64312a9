"""A pool of workers, as the grid on Ray sees them. A worker is a Ray actor, and it is in one of four states::

             fill               wait (1)           run
    (none) --------> starting ------------> idle --------> running
                        |                   |  ^              |
                        |                   |  |              | wait (3)
                        |                   |  |   settle     v
                        |                   |  +----------- in hand
                        |                   |                 |
                        | wait (2)          | shrink, settle  | settle (4), dismiss
                        v                   v                 v
                      gone                gone              gone  <--- stop --- running

The methods of `WorkerPool` do the transitions:

1. The actor has built its client app.
2. The actor has failed, or has taken longer than it may. If its process has died, another one is started after a
   pause, which doubles from time to time. If that happens too often in a row, or an actor takes too long, the pool goes
   on with one worker less.
3. The chunk is finished, or the actor has died. The grid then has the worker in hand, and settles or dismisses it.
4. There are more workers than there should be, because memory ran out and the pool was made smaller.

A worker that is idle or running may keep chunks. That is, it has finished them and the grid has their replies, but the
sum of their arrays is still in the actor. If the worker goes before it has handed the sum over, its chunks are lost.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fedlab.engine import cluster
from fedlab.engine.actors import ClientWorker
from fedlab.engine.dispatch import Chunk
from fedlab.engine.execution import ChunkResult
from fedlab.engine.raywatch import TICK
from fedlab.engine.scheduling import LONGEST_CHUNK
from fedlab.engine.simulation import Simulation
from fedlab.errors import MachineError

log = logging.getLogger(__name__)

Finished = list[tuple[Chunk, ChunkResult]]

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before a worker is started in place of one that died
_MOST_DEATHS = 6  # of workers in a row, none of which has started, before one of them is given up


@dataclass(eq=False)
class Worker:
    """One actor.

    Args:
        actor: Ray's handle of a `ClientWorker`.
        patience_ends: when it must have started, on the clock `time.monotonic`.
        gpu_share: the share of a GPU whose memory it may take.
        number: its number, from 0, in timelines; the one that replaces it takes it over.
        pid: id of its process, once it has started.
        kept: chunks that it has finished and whose sum it keeps.
        kept_seconds: how long these have taken.
    """

    actor: Any
    patience_ends: float
    gpu_share: float
    number: int
    pid: int = 0
    kept: Finished = field(default_factory=list)
    kept_seconds: float = 0.0

    def keep(self, chunk: Chunk, result: ChunkResult) -> None:
        """Note that a chunk is finished and that its sum stays in the actor."""
        self.kept.append((chunk, result))
        self.kept_seconds += sum(span.seconds for span in result.spans)
        chunk.dispatch.num_kept += len(result.replies)

    def release(self) -> Finished:
        """Note that the sum has left the actor, or is lost, and return the chunks it is of."""
        released, self.kept, self.kept_seconds = self.kept, [], 0.0
        for chunk, result in released:
            chunk.dispatch.num_kept -= len(result.replies)
        return released

    def must_hand_over(self, queue: Iterable[Chunk]) -> bool:
        """Whether its sum should be fetched: nothing in the queue adds to it, or too much would be lost with it."""
        if not self.kept:
            return False
        dispatch = self.kept[0][0].dispatch
        too_much = self.kept_seconds >= LONGEST_CHUNK or not dispatch.keeps_sums
        return too_much or all(chunk.dispatch is not dispatch for chunk in queue)


@dataclass(eq=False)
class WorkerTask:
    """A chunk at work.

    Args:
        worker: the worker that runs it.
        chunk: the chunk.
        keep: whether the worker keeps the sum of its replies.
    """

    worker: Worker
    chunk: Chunk
    keep: bool


class WorkerPool:
    """The workers of a grid. There are none before `open`.

    Args:
        simulation: the clients.
        threads: number of torch and BLAS threads of a worker, and of CPUs that it reserves.
        gpu_share: the share of a GPU that a worker reserves, and whose memory it may take.
        start_timeout: seconds that a worker may take to start.
    """

    def __init__(self, simulation: Simulation, threads: int, gpu_share: float, start_timeout: float) -> None:
        self.size = 0
        """Number of workers there should be."""
        self.starting: dict[Any, Worker] = {}
        """By Ray's reference of the call that will return the worker's process id."""
        self.idle: list[Worker] = []
        self.running: dict[Any, WorkerTask] = {}
        """By Ray's reference of the call that will return the chunk's result."""
        self._simulation, self._simulation_ref = simulation, None
        self._threads, self._gpu_share, self._start_timeout = threads, gpu_share, start_timeout
        self._deaths, self._resume = 0, 0.0  # workers in a row that died as they started; when to start the next one

    def open(self, size: int) -> None:
        """Start `size` workers, and wait for the first of them; the others join as they come up.

        Raises:
            MachineError: none could be started.
            Exception: what the simulation's factory raised.
        """
        self.size, self._simulation_ref = size, ray.put(self._simulation)
        while not self.idle:
            self.fill()
            self.wait(None)

    @property
    def up(self) -> list[Worker]:
        """The workers that are idle or running."""
        return [*self.idle, *(task.worker for task in self.running.values())]

    @property
    def coming(self) -> bool:
        """Whether further workers are starting, or will be started after a pause."""
        return bool(self.starting) or (self._deaths > 0 and len(self.up) < self.size)

    def fill(self) -> None:
        """Start as many workers as are missing, without waiting for them; none during the pause after a death."""
        while len(self.up) + len(self.starting) < self.size and time.monotonic() >= self._resume:
            actor = self._new_actor()
            taken = {worker.number for worker in [*self.up, *self.starting.values()]}
            number = next(number for number in itertools.count() if number not in taken)
            worker = Worker(actor, time.monotonic() + self._start_timeout, self._gpu_share, number)
            self.starting[actor.start.remote(self._simulation_ref)] = worker

    def _new_actor(self) -> Any:
        kind = ray.remote(ClientWorker).options(num_cpus=self._threads, num_gpus=self._gpu_share)
        return kind.remote(self._threads, self._gpu_share)

    def run(self, task: WorkerTask, *arguments: object) -> None:
        """Let an idle worker run a chunk.

        Args:
            task: the chunk, and the worker that is to run it.
            *arguments: those of `ClientWorker.run_chunk`, the last two left out.
        """
        self.idle.remove(task.worker)
        inspect = task.chunk.payload.inspect
        self.running[task.worker.actor.run_chunk.remote(*arguments, task.keep, inspect)] = task

    def wait(self, timeout: float | None) -> tuple[WorkerTask, ChunkResult | RayError] | None:
        """Wait until one worker has started or finished.

        Args:
            timeout: seconds to wait at most; None waits until something happens, but returns from time to time.

        Returns:
            The chunk that is finished, with its result or with the error by which its worker died. The caller must then
            `settle` or `dismiss` the worker. None if no chunk is finished.

        Raises:
            MachineError: no worker is left, or Ray has died.
            Exception: what the simulation's factory raised.
        """
        if self._deaths:
            self.fill()
        refs, now = [*self.running, *self.starting], time.monotonic()
        patience = [worker.patience_ends - now for worker in self.starting.values()]
        pause = [self._resume - now] if self._deaths and self._resume > now else []
        limits = [*patience, *pause, *([] if timeout is None else [timeout]), TICK]
        cluster.check_alive()
        if not refs:
            time.sleep(max(0.0, min(limits)) if pause else 0.0)
            return None
        done, _ = ray.wait(refs, num_returns=1, timeout=max(0.0, min(limits)))
        cluster.check_alive()
        for ref in done:
            if ref in self.starting:
                self._has_started(ref)
        for ref, worker in list(self.starting.items()):
            if worker.patience_ends <= time.monotonic():
                self._give_up(ref, f"it did not start within {self._start_timeout:g} s")
        return next((self._has_finished(ref) for ref in done if ref in self.running), None)

    def _has_started(self, ref: Any) -> None:
        try:
            pid = ray.get(ref)
        except RayTaskError as error:  # the user's factory raised: that is the error to show
            raise error.cause from error
        except RayError as error:
            self._has_died(ref, str(error))
        else:
            self._deaths, self._resume = 0, 0.0
            worker = self.starting.pop(ref)
            worker.pid = pid
            self.settle(worker)

    def _has_died(self, ref: Any, reason: str) -> None:
        """Start another worker later in place of one that died as it started, unless that has happened too often."""
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS:
            self._deaths, self._resume = 0, 0.0
            self._give_up(ref, reason)
            return
        ray.kill(self.starting.pop(ref).actor)
        pause = min(_FIRST_PAUSE * 2 ** (self._deaths - 1), _LONGEST_PAUSE)
        self._resume = time.monotonic() + pause
        log.warning(
            "a worker died as it started; another one is started in %g s: %s",
            pause,
            next(iter(reason.splitlines()), ""),
        )

    def _give_up(self, ref: Any, reason: str) -> None:
        ray.kill(self.starting.pop(ref).actor)
        if len(self.up) + len(self.starting) >= self.size:  # it is not missed: the pool was made smaller meanwhile
            return
        self.size -= 1
        if self.size == 0:
            raise MachineError(
                "engine.workers",
                f"no worker could be started: {reason}",
                f"room on the cluster: {cluster.free('CPU')} CPUs and {cluster.free('GPU')} GPUs are free",
                "look at Ray's logs (/tmp/ray/session_latest/logs), free the machine, or set engine.name: inline",
            )
        log.warning("a worker could not be started and %d go on without it: %s", self.size, reason)

    def _has_finished(self, ref: Any) -> tuple[WorkerTask, ChunkResult | RayError]:
        task = self.running.pop(ref)
        try:
            result: ChunkResult = ray.get(ref)
        except RayTaskError as error:  # an exception of a client is a reply: this one is a fault of the engine
            self.idle.append(task.worker)
            raise error.cause from error
        except RayError as error:
            return task, error
        result.worker = task.worker.number
        return task, result

    def settle(self, worker: Worker) -> list[Chunk]:
        """Make a worker idle, or dismiss it if there are enough without it; returns the chunks that are lost."""
        if len(self.up) >= self.size:
            return self.dismiss(worker)
        if worker.gpu_share != self._gpu_share:
            worker.gpu_share = self._gpu_share
            worker.actor.limit_memory.remote(self._gpu_share)
        self.idle.append(worker)
        return []

    def dismiss(self, worker: Worker) -> list[Chunk]:
        """Kill a worker that the caller has in hand; returns the chunks that are lost."""
        ray.kill(worker.actor)
        return [chunk for chunk, _ in worker.release() if chunk.messages]

    def stop(self, unwanted: Iterable[Any]) -> None:
        """Kill workers, given by keys of `running`, because Ray cannot interrupt an actor."""
        for ref in list(unwanted):
            ray.kill(self.running.pop(ref).worker.actor)

    def shrink(self) -> list[tuple[Worker, list[Chunk]]]:
        """Go on with half as many workers, each with twice the memory.

        Returns:
            The workers that were idle, each with the chunks that are lost with it.
        """
        self.size = self.size // 2
        self._gpu_share = min(1.0, 2 * self._gpu_share)
        idle, self.idle = self.idle, []
        return [(worker, self.settle(worker)) for worker in idle]

    def close(self) -> None:
        """Kill all workers; may be called twice."""
        if ray.is_initialized() and not cluster.lost():
            for worker in [*self.up, *self.starting.values()]:
                ray.kill(worker.actor)
        self.starting, self.idle, self.running = {}, [], {}
