"""A timeout is for slow clients: time without any worker does not count. The clock is the test's."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedlab.engine import Simulation, cluster
from fedlab.engine.dispatch import Chunk
from fedlab.engine.execution import ChunkResult
from fedlab.engine.grids.inline import InlineGrid
from fedlab.engine.grids.ray import RayGrid
from fedlab.engine.workers import Worker, WorkerPool
from fedlab.errors import MachineError

Ask = Callable[..., list[Message]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Waiting(InlineGrid):
    """An hour passes before its first reply: until a worker is up, while it hands out work, or while clients work."""

    def __init__(self, factory: Callable[[], ClientApp], clock: list[float], passes: str) -> None:
        super().__init__(Simulation(factory, 4, {"secret": 5}))
        self.clock, self.passes = clock, passes

    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        return [] if self._pass("in work") else super()._collect(timeout)

    def _await_workers(self) -> bool:
        self._pass("beside workers")
        return self._pass("without workers")

    def _pass(self, now: str) -> bool:
        if self.passes != now:
            return False
        self.passes = ""
        self.clock[0] += 3600
        return True


@pytest.mark.parametrize("passes", ["without workers", "beside workers", "in work"])
def test_a_timeout_does_not_run_while_no_worker_is_up(
    passes: str, clock: list[float], factory: Callable[[], ClientApp], ask: Ask
) -> None:
    grid = Waiting(factory, clock, passes)
    (reply,) = grid.send_and_receive(ask(grid, [0]), timeout=5.0)
    assert reply.has_error() == (passes != "without workers")
    assert not reply.has_error() or reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    (reply,) = grid.send_and_receive(ask(grid, [1]), timeout=5.0)
    assert not reply.has_error()  # an hour lost before is not this one's


def test_a_worker_that_never_starts_is_waited_for_no_longer_than_its_own_time(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run whose workers cannot be replaced would wait for ever, as its deadline stands still."""

    def wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        clock[0] += timeout
        return [], refs

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(cluster, "free", lambda resource: "0 of 1")
    pool = WorkerPool(Simulation(ClientApp, 1), threads=1, gpu_share=0.0, start_timeout=60.0)
    pool.size, pool.starting = 1, {"ref": Worker(None, clock[0] + 60, 0.0, 0)}
    grid = object.__new__(RayGrid)
    grid._pool, grid._queue = pool, deque()
    with pytest.raises(MachineError, match="no worker could be started: it did not start within 60 s"):
        grid._await_workers()
    assert clock[0] == 1060.0
