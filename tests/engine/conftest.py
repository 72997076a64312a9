"""Numpy-only client apps for the engine tests, and one Ray for all of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlab.config import EngineConfig
from fedlab.engine import Placement, Simulation
from fedlab.engine.grids.inline import InlineGrid
from fedlab.engine.grids.ray import RayGrid
from fedlab.protocol.messages import array_record, config_record, to_numpy, to_record
from fedlab.protocol.sums import Reduction, log2_scale
from fedlab.seeding import numpy_generator

# workers cannot import this file
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def build_app() -> ClientApp:
    """A client that adds noise of its own to what it gets, counts its rounds and misbehaves on request."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        config = config_record(message.content, "config") or ConfigRecord()
        state = context.state
        count = 1 + (int(state["memory"]["count"]) if "memory" in state else 0)
        if config.get("remember", True):
            state["memory"] = MetricRecord({"count": count})
            state["picture"] = to_record({"x": np.full(3, count, np.float32)})
        if client in config.get("raise", []):
            raise RuntimeError(f"client {client} is broken")
        if client in config.get("exhaust", []):
            once = config.get("once")
            if not once or not Path(str(once)).exists():
                if once:
                    Path(str(once)).touch()
                raise torch.OutOfMemoryError(f"no room for client {client}")
        if client in config.get("leave", []):
            sys.exit(3)
        if client in config.get("kill", []):
            once = config.get("once")
            if not once or not Path(str(once)).exists():
                if once:
                    Path(str(once)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if client in config.get("hang", []):
            if config.get("began"):
                Path(str(config["began"])).touch()
            signal.pause()  # until somebody kills this worker
        arrays = array_record(message.content, "arrays")
        assert arrays is not None
        noise = numpy_generator(7, "client", client, int(config.get("server-round", 0)))
        result = {
            name: values + noise.standard_normal(values.shape).astype(np.float32)
            for name, values in to_numpy(arrays).items()
        }
        metrics = MetricRecord(
            {"num-examples": 3 + 7 * client, "count": count, "pid": os.getpid(), "secret": context.run_config["secret"]}
        )
        return Message(RecordDict({"arrays": to_record(result), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays = array_record(message.content, "arrays")
        assert arrays is not None
        loss = float(sum(np.abs(values).sum() for values in to_numpy(arrays).values()))
        client = int(context.node_config["partition-id"])
        return Message(
            RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": 1 + client})}), reply_to=message
        )

    return app


START = {
    "conv.weight": np.linspace(-1, 1, 2000, dtype=np.float32).reshape(20, 100),
    "bias": np.zeros((), np.float32),
}

RUN_CONFIG: dict[str, bool | bytes | float | int | str] = {"secret": 5}


def ask(grid: Grid, clients: range | list[int], *, reduce: bool = False, **config: object) -> list[Message]:
    """Messages to clients, sharing one content."""
    record = ConfigRecord(config)  # type: ignore[arg-type]  # tests pass valid scalars and lists
    if reduce:
        weights = sum(3 + 7 * client for client in clients)
        record["fedlab.reduce"] = Reduction("examples", log2_scale(weights)).to_json()
    content = RecordDict({"arrays": to_record(START), "config": record})
    return [Message(content, 1000 + client, "train") for client in clients]


@pytest.fixture(name="ask", scope="session")
def ask_fixture() -> Callable[..., list[Message]]:
    return ask


@pytest.fixture(scope="session")
def factory() -> Callable[[], ClientApp]:
    return build_app


@pytest.fixture
def inline() -> Iterator[InlineGrid]:
    grid = InlineGrid(Simulation(build_app, 12, RUN_CONFIG))
    yield grid
    grid.close()


def ray_grid(simulation: Simulation, workers: int, **engine: Any) -> RayGrid:
    """A grid on so many workers; `engine` are keys of the configuration's section."""
    return RayGrid(simulation, EngineConfig(workers=workers, **engine), Placement("cpu", workers, 0.0))


@pytest.fixture(name="ray_grid", scope="session")
def ray_grid_fixture(ray_running: None) -> Callable[..., RayGrid]:
    return ray_grid


@pytest.fixture(scope="session")
def _two_workers(ray_running: None) -> Iterator[RayGrid]:
    grid = ray_grid(Simulation(build_app, 12, RUN_CONFIG), workers=2, chunk=3)
    yield grid
    grid.close()


@pytest.fixture
def two_workers(_two_workers: RayGrid) -> RayGrid:
    """A grid that tests share, since workers take seconds to start; its clients' states are empty."""
    _two_workers.restore_client_states({})
    return _two_workers
