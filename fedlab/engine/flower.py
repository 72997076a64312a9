"""Flower's own simulation, to compare FedLab's engines with: the same apps give the same results."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.telemetry import EventType

from fedlab.config import EngineConfig
from fedlab.engine.cluster import local
from fedlab.engine.execution import RUN_ID, set_task_identity
from fedlab.engine.machine import settle_process
from fedlab.engine.placement import Placement
from fedlab.engine.simulation import Simulation
from fedlab.errors import FedLabError

_REGISTRATION_TIMEOUT = 120.0  # seconds
_runs = itertools.count()
_built: dict[str, ClientApp] = {}


class _FactoryApp(ClientApp):
    """Builds the client app once in each worker process, although Flower pickles its app into every message.

    It also gives clients the run configuration. Flower's simulation leaves that empty for an app without a bundle.

    Args:
        simulation: the clients.
        threads: number of threads that torch and BLAS may use in a worker.
    """

    def __init__(self, simulation: Simulation, threads: int) -> None:
        super().__init__()
        self._simulation, self._threads = simulation, threads
        self._token = f"{os.getpid()}-{next(_runs)}"

    def __call__(self, message: Message, context: Context) -> Message:
        if self._token not in _built:
            settle_process(self._threads)
            _built.clear()
            _built[self._token] = self._simulation.factory()
        run_config = dict(self._simulation.run_config)
        inner = Context(context.run_id, context.node_id, context.node_config, context.state, run_config)
        reply = _built[self._token](message, inner)
        context.state = inner.state
        return reply


def run_flower(
    main: Callable[[Grid, Context], None], simulation: Simulation, config: EngineConfig, placement: Placement
) -> None:
    """Run the server's part and the client app in Flower's simulation.

    The simulation ends with ``ray.shutdown()``, whoever has started Ray, and its node ids are random.

    Args:
        main: the server's part of the run.
        simulation: the clients; ``fail_fast`` is ignored.
        config: the configuration's section ``engine``.
        placement: number of workers, and the share of a GPU that each of them reserves.

    Raises:
        FedLabError: some clients were not registered in time.
        Exception: what `main` raised.
    """
    num_clients = simulation.num_clients
    set_task_identity()
    server_app = ServerApp()

    @server_app.main()
    def main_with_all_nodes(grid: Grid, context: Context) -> None:
        # Flower starts the server before all nodes are registered
        deadline = time.monotonic() + _REGISTRATION_TIMEOUT
        while (nodes := len(list(grid.get_node_ids()))) < num_clients:
            if time.monotonic() > deadline:
                raise FedLabError(f"Flower's simulation registered {nodes} of {num_clients} nodes and then no more")
            time.sleep(0.02)
        main(grid, context)

    run = Run.create_empty(RUN_ID)
    run.primary_task_id = 1
    run.federation_id = NOOP_FEDERATION_ID
    init: dict[str, Any] = {"address": config.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if config.address is None:
        init = local(placement.workers * config.threads)
    with _undisturbed():
        _run_simulation(
            num_supernodes=num_clients,
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
            client_app=_FactoryApp(simulation, config.threads),
            server_app=server_app,
            server_app_context=Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(simulation.run_config)),
            run=run,
            backend_config={
                "init_args": init,
                "client_resources": {"num_cpus": config.threads, "num_gpus": placement.gpus_per_worker},
            },
        )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep Flower's progress lines off the console, and undo its change of PYTHONPATH in this process."""
    logger, path = logging.getLogger("flwr"), os.environ.get("PYTHONPATH")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
        if path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = path
