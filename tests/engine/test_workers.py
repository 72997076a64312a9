"""What workers keep, and how many of them go on; without Ray, whose calls the tests answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray
import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from ray.exceptions import RayActorError

from fedlab.engine import Simulation, cluster, pin_threads, workers
from fedlab.engine.actors import ClientWorker
from fedlab.engine.execution import ChunkResult
from fedlab.engine.workers import Worker, WorkerPool
from fedlab.errors import MachineError
from fedlab.protocol.messages import requested_reduction
from tests.server.remote import Clock

Ask = Callable[..., list[Message]]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Worker], int], WorkerPool]:
    """Makes a pool in which some workers are up and others have taken too long to start."""
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: ([], refs))
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(cluster, "free", lambda resource: "0 of 1")

    def make(up: list[Worker], size: int) -> WorkerPool:
        pool = WorkerPool(Simulation(ClientApp, 1), threads=1, gpu_share=0.0, start_timeout=60.0)
        pool.size, pool.idle, pool.starting = size, up, {"ref": Worker(None, 0.0, 0.0, 1)}
        return pool

    return make


def test_a_worker_that_does_not_start_is_gone_without(late: Callable[[list[Worker], int], WorkerPool]) -> None:
    pool = late([Worker(None, 0.0, 0.0, 0)], 2)
    pool.wait(0.0)
    assert (pool.size, len(pool.up), pool.starting) == (1, 1, {})
    with pytest.raises(MachineError, match="no worker could be started: it did not start within 60 s"):
        late([], 1).wait(0.0)


def test_a_worker_that_is_no_longer_needed_may_fail_to_start(
    late: Callable[[list[Worker], int], WorkerPool],
) -> None:
    """The pool was made smaller while it started. Counting it twice ended a run whose last worker was well."""
    pool = late([Worker(None, 0.0, 0.0, 0)], 1)
    pool.wait(0.0)
    assert (pool.size, len(pool.up), pool.starting) == (1, 1, {})


def test_a_sum_that_nobody_asked_for_is_dropped_with_its_dispatch(factory: Callable[[], ClientApp], ask: Ask) -> None:
    threads = torch.get_num_threads()
    worker = ClientWorker(1, 0.0)
    pin_threads(threads)
    worker.start(Simulation(factory, 12, {"secret": 5}))
    (message,) = ask(None, [3], reduce=True)
    message.metadata.__dict__["_message_id"] = "1"
    reduction = requested_reduction(message.content)

    def run(dispatch: int, metadatas: list[Any], keep: bool) -> ChunkResult:
        content: RecordDict = message.content
        return worker.run_chunk(content, metadatas, {}, reduction, False, dispatch, keep)

    def weight(result: ChunkResult) -> float:
        assert result.total is not None
        return result.total.state()[1]["bias"]

    assert run(1, [message.metadata], keep=True).total is None
    assert weight(run(1, [], keep=False)) == 24
    run(2, [message.metadata], keep=True)
    assert weight(run(3, [message.metadata], keep=False)) == 24  # without what was kept of another dispatch
    assert worker._kept is None  # and that takes no memory any longer


# workers that die as they start


class Dying:
    """Ray as a pool sees it: the first so many actors die as they start.

    Args:
        deaths: how many.
        clock: passes while the pool waits.
    """

    def __init__(self, deaths: int, clock: Clock) -> None:
        self.deaths, self.clock, self.started, self.killed = deaths, clock, 0, 0
        self.start = self  # as in actor.start.remote(…)

    def remote(self, *arguments: object) -> str:
        self.started += 1
        return f"start {self.started}"

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return refs[:1], refs[1:]

    def get(self, ref: str) -> int:
        if int(ref.split()[1]) <= self.deaths:
            raise RayActorError(None, "killed")
        return 4000

    def kill(self, actor: object) -> None:
        self.killed += 1


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Dying, WorkerPool]]:
    def make(deaths: int) -> tuple[Dying, WorkerPool]:
        clock = Clock()
        fake = Dying(deaths, clock)
        for name in ("wait", "get", "kill"):
            monkeypatch.setattr(ray, name, getattr(fake, name))
        monkeypatch.setattr(ray, "put", lambda value: "simulation")
        monkeypatch.setattr(cluster, "free", lambda resource: "1 of 1")
        monkeypatch.setattr(workers, "time", clock)
        monkeypatch.setattr(WorkerPool, "_new_actor", lambda pool: fake)
        return fake, WorkerPool(Simulation(ClientApp, 1), threads=1, gpu_share=0.0, start_timeout=60.0)

    return make


def test_a_worker_killed_as_it_starts_is_started_again_after_a_pause(
    dying: Callable[[int], tuple[Dying, WorkerPool]],
) -> None:
    fake, pool = dying(3)
    pool.open(1)
    assert (pool.size, len(pool.up), fake.started) == (1, 1, 4), "it does not count against the pool"
    assert fake.clock.now == pytest.approx(1 + 2 + 4), "with longer and longer pauses"
    assert not pool.coming


def test_workers_that_always_die_are_given_up(dying: Callable[[int], tuple[Dying, WorkerPool]]) -> None:
    fake, pool = dying(10**6)
    with pytest.raises(MachineError, match="no worker could be started: killed"):
        pool.open(1)
    assert fake.started == workers._MOST_DEATHS
    _, pool = dying(workers._MOST_DEATHS)
    pool.open(2)
    assert (pool.size, len(pool.up)) == (1, 1), "one is given up, the other one comes"


def test_a_pool_does_not_wait_for_a_ray_that_is_dead(
    dying: Callable[[int], tuple[Dying, WorkerPool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, pool = dying(0)
    monkeypatch.setattr(cluster, "lost", lambda: "Ray's raylet has died (signal 9)")
    with pytest.raises(MachineError, match=r"raylet has died \(signal 9\)\n.*fedlab resume RUN"):
        pool.open(1)
    pool.close()
    assert fake.killed == 0, "nothing is asked of it"
