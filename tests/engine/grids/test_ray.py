"""The grid on Ray: the inline grid's bits, and workers that die."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedlab.config import EngineConfig
from fedlab.engine import Listeners, Placement, Simulation
from fedlab.engine.actors import ClientWorker
from fedlab.engine.dispatch import Chunk, Dispatch, Payload
from fedlab.engine.execution import ChunkResult
from fedlab.engine.grids.base import SimulationGrid
from fedlab.engine.grids.inline import InlineGrid
from fedlab.engine.grids.ray import RayGrid
from fedlab.engine.scheduling import Span
from fedlab.engine.workers import Worker
from fedlab.errors import MachineError
from fedlab.protocol.messages import exact_sum, metric_record, requested_reduction, to_record

Ask = Callable[..., list[Message]]
RayGrids = Callable[..., RayGrid]


def wait_for_workers(grid: RayGrid, number: int) -> list[int]:
    """Workers start in the background; a cheap round lets the grid notice those that are up."""
    while len(grid.worker_pids()) < number:
        grid.pull_messages([])
        time.sleep(0.05)
    return grid.worker_pids()


def digest(grid: SimulationGrid, ask: Ask, *, reduce: bool = True, **config: object) -> str:
    """Hash of three rounds' averages, each computed from the one before."""
    result = hashlib.sha256()
    for round in range(3):
        messages = ask(grid, range(12), reduce=True, **{"server-round": round}, **config)
        reduction = requested_reduction(messages[0].content)
        assert reduction is not None
        if not reduce:
            del messages[0].content["config"]["fedlab.reduce"]  # type: ignore[union-attr]  # a config record
        replies = grid.send_and_receive(messages)
        assert [reply.metadata.src_node_id for reply in replies] == [1000 + client for client in range(12)]
        for name, values in sorted(exact_sum(replies, reduction).mean().items()):
            result.update(name.encode() + values.tobytes())
        counts = [metric_record(reply.content, "metrics") for reply in replies]
        result.update(str([metrics and metrics["count"] for metrics in counts]).encode())
    return result.hexdigest()


@pytest.fixture(scope="module")
def expected(factory: Callable[[], ClientApp], ask: Ask) -> str:
    return digest(InlineGrid(Simulation(factory, 12, {"secret": 5})), ask)


def test_one_worker_gives_the_bits_of_the_inline_grid(
    ray_grid: RayGrids, factory: Callable[[], ClientApp], ask: Ask, expected: str
) -> None:
    told: list[tuple[int, int]] = []
    grid = RayGrid(
        Simulation(factory, 12, {"secret": 5}),
        EngineConfig(chunk=3),
        Placement("cpu", 1, 0.0),
        Listeners(on_progress=lambda done, total: told.append((done, total))),
    )
    try:
        assert digest(grid, ask) == expected
        assert told == [(3, 12), (6, 12), (9, 12), (12, 12)] * 3
        # a worker that dies between two rounds
        os.kill(wait_for_workers(grid, 1)[0], signal.SIGKILL)
        grid.restore_client_states({})
        assert digest(grid, ask) == expected
    finally:
        grid.close()


@pytest.mark.parametrize("reduce", [True, False])
def test_two_workers_give_the_bits_of_the_inline_grid(
    two_workers: RayGrid, ask: Ask, expected: str, reduce: bool
) -> None:
    assert digest(two_workers, ask, reduce=reduce) == expected


@pytest.mark.parametrize("victim", [4, 11])
def test_a_worker_killed_in_mid_round_changes_nothing(
    two_workers: RayGrid, ask: Ask, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: int
) -> None:
    before = wait_for_workers(two_workers, 2)
    with caplog.at_level(logging.WARNING, "fedlab"):
        assert digest(two_workers, ask, kill=[victim], once=str(tmp_path / "killed")) == expected
    assert (tmp_path / "killed").exists()
    after = wait_for_workers(two_workers, 2)
    assert len(set(before) & set(after)) == 1
    if victim == 11:  # whoever runs the last chunk has run another before, and its sum is lost
        assert caplog.text.count("is gone; repeating clients") == 2


def test_idle_workers_that_have_died_cost_a_client_no_attempt(two_workers: RayGrid, ask: Ask) -> None:
    """As when a node is lost between two rounds: with one repeat, two dead workers would be an error of the client."""
    for pid in wait_for_workers(two_workers, 2):
        os.kill(pid, signal.SIGKILL)
    (reply,) = two_workers.send_and_receive(ask(two_workers, [4]))
    assert not reply.has_error()


def test_nobody_learns_from_repeated_clients_that_a_whole_chunk_takes_so_little(
    two_workers: RayGrid, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[float] = []
    wait_for_workers(two_workers, 2)
    monkeypatch.setattr(two_workers._costs, "learn", lambda kind, units, seconds: learnt.append(units))
    replies = two_workers.send_and_receive(ask(two_workers, range(12), kill=[4], once=str(tmp_path / "killed")))
    assert not any(reply.has_error() for reply in replies)
    assert sum(learnt) == 9  # the three clients of the chunk that was lost were repeated one by one


def test_a_worker_that_dies_while_it_hands_over_its_sum_changes_nothing(
    ray_grid: RayGrids,
    factory: Callable[[], ClientApp],
    ask: Ask,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = tmp_path / "killed"

    class Fragile(ClientWorker):
        def run_chunk(self, content: RecordDict, metadatas: Sequence[Metadata], *rest: Any) -> ChunkResult:
            if not metadatas and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run_chunk(content, metadatas, *rest)

    monkeypatch.setattr("fedlab.engine.workers.ClientWorker", Fragile)
    grid = ray_grid(Simulation(factory, 12, {"secret": 5}), workers=2, chunk=3)
    try:
        wait_for_workers(grid, 2)
        assert digest(grid, ask) == expected
        assert marker.exists()
    finally:
        grid.close()


def test_what_a_worker_keeps_holds_nobody_up(two_workers: RayGrid, inline: InlineGrid, ask: Ask) -> None:
    """A client with two messages, whose second waits for the state after the first, beside work nobody waits for."""
    sums = []
    for grid in (inline, two_workers):
        pushed = set(grid.push_messages(ask(grid, [7, 8])))
        messages = ask(grid, [3, 3, 1, 2, 3, 4, 5, 6, 7, 8], reduce=True)
        reduction = requested_reduction(messages[0].content)
        assert reduction is not None
        replies = grid.send_and_receive(messages)
        counts = [metric_record(reply.content, "metrics") for reply in replies]
        assert [found and found["count"] for found in counts] == [1, 1, 1, 2, 3, 1, 1, 1, 2, 2]
        sums.append({name: values.tobytes() for name, values in exact_sum(replies, reduction).mean().items()})
        while pushed:
            pushed -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(pushed)}
    assert sums[0] == sums[1]


def test_a_worker_hands_over_before_too_much_is_lost_with_it() -> None:
    def dispatch(left: float | None) -> Dispatch:
        deadline = None if left is None else time.monotonic() + left
        return Dispatch(number=1, position={}, waiting={}, stop_at_error=False, deadline=deadline)

    def chunk(of: Dispatch) -> Chunk:
        return Chunk(of, Payload(RecordDict(), None), [])

    def keeping(of: Dispatch, seconds: float) -> Worker:
        result = ChunkResult(spans=[Span(0, "train", 0.0, seconds)])
        worker = Worker(None, 0.0, 0.0, 0)
        worker.keep(chunk(of), result)
        worker.keep(chunk(of), result)
        return worker

    calm, hurried = dispatch(3600.0), dispatch(30.0)
    assert not Worker(None, 0.0, 0.0, 0).must_hand_over([])
    assert not keeping(calm, 9.9).must_hand_over([chunk(calm)])
    assert keeping(calm, 10.0).must_hand_over([chunk(calm)])  # twenty seconds of work
    assert keeping(hurried, 1.0).must_hand_over([chunk(hurried)])  # it may be stopped soon
    assert keeping(calm, 1.0).must_hand_over([])  # nothing is left to do
    assert keeping(calm, 1.0).must_hand_over([chunk(dispatch(None))])  # nothing of this dispatch


def test_a_client_that_always_kills_its_worker_is_the_only_one_lost(two_workers: RayGrid, ask: Ask) -> None:
    replies = two_workers.send_and_receive(ask(two_workers, range(8), kill=[5]))
    assert [reply.has_error() for reply in replies] == [client == 5 for client in range(8)]
    error = replies[5].error
    assert error.code == ErrorCode.CLIENT_APP_CRASHED
    assert error.reason is not None
    assert "died while it ran client 5 (attempt 2 of 2)" in error.reason
    assert two_workers.client_of(replies[5].metadata.src_node_id) == 5
    healthy = two_workers.send_and_receive(ask(two_workers, range(8)))
    assert not any(reply.has_error() for reply in healthy)
    counts = [metric_record(reply.content, "metrics") for reply in healthy]
    assert [metrics and metrics["count"] for metrics in counts] == [2, 2, 2, 2, 2, 1, 2, 2]


def test_push_and_pull_do_not_wait(two_workers: RayGrid, ask: Ask) -> None:
    content = RecordDict({"arrays": to_record({"w": np.ones(3, np.float32)}), "config": ConfigRecord()})
    first = two_workers.push_messages([Message(content, 1003, "train")])
    second = two_workers.push_messages([Message(content, 1003, "train"), Message(content, 1001, "train")])
    ids, replies = {*first, *second}, []
    while ids:
        for reply in two_workers.pull_messages(ids):
            ids.remove(reply.metadata.reply_to_message_id)
            replies.append(reply)
        time.sleep(0.01)
    assert sorted(reply.metadata.src_node_id for reply in replies) == [1001, 1003, 1003]
    metrics = {reply.metadata.reply_to_message_id: metric_record(reply.content, "metrics") for reply in replies}
    # both messages to client 3 were run in order, and its state went from the first to the second
    counts = [metrics[message_id] for message_id in (first[0], second[0])]
    assert [found and found["count"] for found in counts] == [1, 2]


@pytest.fixture
def lone(ray_grid: RayGrids, factory: Callable[[], ClientApp]) -> Iterator[RayGrid]:
    """A grid of its own that stops at the first error; the cluster of nine CPUs has room for one of its workers."""
    grid = ray_grid(Simulation(factory, 12, {"secret": 5}, fail_fast=True), workers=9, threads=5, chunk=3)
    yield grid
    grid.close()


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """What a round's deadline is measured by, so that an event and not the speed of this machine lets it pass."""
    for module in ("dispatch", "grids.base"):
        monkeypatch.setattr(f"fedlab.engine.{module}.time", SimpleNamespace(monotonic=clock))


def test_failing_fast(lone: RayGrid, ask: Ask) -> None:
    assert len(wait_for_workers(lone, 1)) == 1
    replies = lone.send_and_receive(ask(lone, range(12), **{"raise": [1]}))
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "RuntimeError: client 1 is broken" in (replies[1].error.reason or "")
    assert 2 not in {lone.client_of(reply.metadata.src_node_id) for reply in replies}  # after 1 in its chunk
    replies = lone.send_and_receive(ask(lone, range(12), reduce=True, **{"raise": [4]}))
    assert [lone.client_of(reply.metadata.src_node_id) for reply in replies if reply.has_error()] == [4]
    assert not {8, 9, 10, 11} & {lone.client_of(reply.metadata.src_node_id) for reply in replies}
    assert not any(reply.has_error() for reply in lone.send_and_receive(ask(lone, range(12))))


def test_late_clients(lone: RayGrid, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "hangs"
    # the only worker begins the chunk that hangs when the one before it has been fetched
    set_clock(monkeypatch, lambda: 10.0 * hangs.exists())
    messages = ask(lone, range(4), reduce=True, hang=[3], began=str(hangs))
    late = lone.send_and_receive(messages, timeout=0.1)
    assert [reply.has_error() for reply in late] == [False, False, False, True]
    assert late[3].error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    reduction = requested_reduction(messages[0].content)
    assert reduction is not None
    # the three before it, in another chunk of the same worker, are in the sum
    assert exact_sum(late, reduction).state()[1]["bias"] == 3 + 10 + 17
    monkeypatch.undo()
    assert not any(reply.has_error() for reply in lone.send_and_receive(ask(lone, range(12))))


def test_a_deadline_does_not_run_while_no_worker_is_up(
    lone: RayGrid, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.send_and_receive(ask(lone, range(4), **{"raise": [0]}))
    assert lone.worker_pids() == []  # it was stopped in its second chunk, and another starts when there is work
    up: set[int] = set()

    def clock() -> float:
        """Ten seconds pass whenever a worker comes up, and no others."""
        up.update(lone.worker_pids())
        return 10.0 * len(up)

    set_clock(monkeypatch, clock)
    replies = lone.send_and_receive(ask(lone, range(6)), timeout=0.1)
    assert len(up) == 1
    assert [reply.has_error() for reply in replies] == [False] * 6


def test_threads_are_pinned_in_workers(ray_grid: RayGrids) -> None:
    def build() -> ClientApp:
        import torch
        from flwr.app import MetricRecord
        from threadpoolctl import threadpool_info

        app = ClientApp()

        @app.query()
        def threads(message: Message, context: object) -> Message:
            pools = [int(pool["num_threads"]) for pool in threadpool_info()]
            answer = MetricRecord({"torch": torch.get_num_threads(), "pools": pools})
            return Message(RecordDict({"metrics": answer}), reply_to=message)

        return app

    grid = ray_grid(Simulation(build, 1), workers=1)
    try:
        (reply,) = grid.send_and_receive([Message(RecordDict(), 1000, "query")])
    finally:
        grid.close()
    metrics = metric_record(reply.content, "metrics")
    assert metrics is not None
    assert metrics["torch"] == 1
    assert set(metrics["pools"]) == {1}  # type: ignore[arg-type]  # a list


def test_a_factory_that_fails_shows_its_own_error(ray_grid: RayGrids) -> None:
    def broken() -> ClientApp:
        raise KeyError("no such model")

    with pytest.raises(KeyError, match="no such model"):
        ray_grid(Simulation(broken, 1), workers=2)


def test_workers_that_cannot_start_are_a_machine_error(ray_grid: RayGrids, factory: Callable[[], ClientApp]) -> None:
    with pytest.raises(MachineError, match="no worker could be started: 64 CPUs asked, the cluster has 9 CPUs"):
        ray_grid(Simulation(factory, 1), workers=1, threads=64)
    with pytest.raises(MachineError, match=r"engine\.workers = .*did not start within 0 s"):
        RayGrid(Simulation(factory, 1), EngineConfig(), Placement("cpu", 1, 0.0), start_timeout=0.0)
