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
    """Its work takes an hour, in which there are workers or not."""

    def __init__(self, factory: Callable[[], ClientApp], clock: list[float], up: bool) -> None:
        super().__init__(Simulation(factory, 4, {"secret": 5}))
        self.clock, self.up, self.waited = clock, up, False

    def _collect(self, timeout: float | None) -> list[tuple[Chunk, ChunkResult]]:
        if self.waited:
            return super()._collect(timeout)
        self.waited = True
        self.clock[0] += 3600 if self.up else 0
        return []

    def _await_workers(self) -> None:
        self.clock[0] += 0 if self.up else 3600


@pytest.mark.parametrize("up", [True, False])
def test_a_timeout_does_not_run_while_no_worker_is_up(
    up: bool, clock: list[float], factory: Callable[[], ClientApp], ask: Ask
) -> None:
    grid = Waiting(factory, clock, up)
    (reply,) = grid.send_and_receive(ask(grid, [0]), timeout=5.0)
    assert reply.has_error() == up
    assert not up or reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    assert not grid.send_and_receive(ask(grid, [1]), timeout=5.0)[
        0
    ].has_error()  # an hour lost before is not this one's


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
