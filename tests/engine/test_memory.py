"""GPU memory on a machine without a GPU: what is asked of torch, how many workers fit, and the way back when they do
not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedlab.config import EngineConfig
from fedlab.engine import Placement, Simulation, check_engine, fitting
from fedlab.engine.grids.base import SimulationGrid
from fedlab.engine.grids.inline import InlineGrid
from fedlab.engine.grids.ray import RayGrid
from fedlab.engine.memory import CONTEXT_BYTES, data_allowance, limit_memory, peak_of, release_memory, workers_that_fit
from fedlab.protocol.messages import exact_sum, requested_reduction

Ask = Callable[..., list[Message]]
GIB = 2**30


class Gpu:
    """Two GPUs of 80 GiB, as torch would describe them."""

    def __init__(self, free: tuple[float, float] = (70.0, 60.0)) -> None:
        self.free, self.bounds, self.emptied, self.reserved = free, list[float](), 0, 3 * GIB

    def install(self, patch: pytest.MonkeyPatch) -> None:
        fakes: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: 0,
            "get_device_properties": lambda device: SimpleNamespace(total_memory=80 * GIB),
            "get_per_process_memory_fraction": lambda device: 0.5,
            "mem_get_info": lambda gpu: (int(self.free[gpu] * GIB), 80 * GIB),
            "set_per_process_memory_fraction": self.bounds.append,
            "empty_cache": self._empty,
            "reset_peak_memory_stats": lambda device: None,
            "synchronize": lambda device: None,
            "max_memory_reserved": lambda device: self.reserved,
        }
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)

    def _empty(self) -> None:
        self.emptied += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    made.install(monkeypatch)
    return made


def test_a_worker_may_take_its_share_less_what_cuda_takes(gpu: Gpu) -> None:
    for share in (0.25, 1.0, 2.0, 0.001, 0.0):
        limit_memory(share)
    own = CONTEXT_BYTES / (80 * GIB)
    assert gpu.bounds == [0.25 - own, 1.0, 1.0, 0.0005]
    release_memory()
    assert gpu.emptied == 1
    assert data_allowance(torch.device("cuda")) == 10 * GIB
    assert data_allowance(torch.device("cpu")) == 0


def test_without_a_gpu_nothing_is_bounded_or_measured() -> None:
    limit_memory(0.5)
    release_memory()
    assert peak_of(lambda: 7, torch.device("cpu")) == (7, None)


def test_the_peak_decides_how_many_workers_there_are(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_of(lambda: 7, torch.device("cuda")) == (7, 3 * GIB)
    assert workers_that_fit(16 * GIB) == 4  # 20.6 GiB each with headroom, so that the fuller GPU has room for two
    assert workers_that_fit(200 * GIB) == 2  # one each, and let torch say what it thinks
    monkeypatch.setattr("fedlab.engine.placement.cores", lambda: 16)

    def placed(client_bytes: int | None, **engine: Any) -> Placement:
        config = EngineConfig(**engine)
        return fitting(check_engine(config), config, client_bytes)

    placement = placed(16 * GIB)
    assert (placement.workers, placement.gpus_per_worker) == (4, 0.5)
    assert placed(2**20).workers == 16  # as many as cores
    assert placed(16 * GIB, workers=6).workers == 6  # the user's own word
    assert placed(None).workers == 16  # nothing measured
    assert placed(16 * GIB, device="cpu").workers == 16
    assert placed(16 * GIB, name="inline").workers == 1


def digest(grid: SimulationGrid, ask: Ask, **config: object) -> str:
    hashes = hashlib.sha256()
    for round in range(2):
        messages = ask(grid, range(12), reduce=True, **{"server-round": round}, **config)
        reduction = requested_reduction(messages[0].content)
        assert reduction is not None
        replies = grid.send_and_receive(messages)
        assert not any(reply.has_error() for reply in replies)
        mean = exact_sum(replies, reduction).mean()
        hashes.update(b"".join(mean[name].tobytes() for name in sorted(mean)))
    return hashes.hexdigest()


def test_running_out_of_memory_halves_the_workers_and_changes_nothing(
    ray_grid: Callable[..., RayGrid],
    factory: Callable[[], ClientApp],
    inline: InlineGrid,
    ask: Ask,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    four = ray_grid(Simulation(factory, 12, {"secret": 5}), workers=4, chunk=2)
    try:
        with caplog.at_level(logging.WARNING, "fedlab"):
            got = digest(four, ask, exhaust=[5], once=str(tmp_path / "exhausted"))
        assert got == digest(inline, ask)
        assert (tmp_path / "exhausted").exists()
        assert "out of memory: 2 workers go on; repeating clients [5]" in caplog.text
        assert len(four.worker_pids()) <= 2
        # the repeated client, and the one before it in its chunk, have counted their rounds once
        assert [s["memory"] for s in four.client_states().values()] == [
            s["memory"] for s in inline.client_states().values()
        ]
        replies = four.send_and_receive(ask(four, range(12), exhaust=[3]))
        assert [four.client_of(reply.metadata.src_node_id) for reply in replies if reply.has_error()] == [3]
        error = replies[3].error
        assert error.code == ErrorCode.CLIENT_APP_CRASHED
        assert error.reason is not None
        assert "out of memory: a single worker is too many; lower training.batch_size" in error.reason
        assert "no room for client 3" in error.reason
        assert len(four.worker_pids()) == 1
    finally:
        four.close()


def test_inline_tells_at_once(inline: InlineGrid, ask: Ask) -> None:
    replies = inline.send_and_receive(ask(inline, range(4), exhaust=[2]))
    assert [reply.has_error() for reply in replies] == [False, False, True, False]
    assert "lower training.batch_size, engine.vectorize or engine.resident" in (replies[2].error.reason or "")
