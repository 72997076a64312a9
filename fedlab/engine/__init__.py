"""Where client work runs: `launch` opens the engine that the configuration names and runs a server main on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING

from fedlab.config import EngineConfig
from fedlab.engine.machine import cores, pin_threads, settle_process
from fedlab.engine.placement import Placement, check_engine, fitting
from fedlab.errors import ConfigError

if TYPE_CHECKING:
    from flwr.app import Context, RecordDict
    from flwr.app.user_config import UserConfig
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

    from fedlab.engine.grids.base import SimulationGrid, WorkDone

__all__ = ["Placement", "check_engine", "fitting", "launch", "pin_threads", "started"]

log = logging.getLogger(__name__)


def started(config: EngineConfig, placement: Placement) -> AbstractContextManager[None]:
    """What the engine needs to be up for the work inside, so that it is refused before anything is written.

    Args:
        config: where client work runs.
        placement: as `check_engine` and `fitting` made it of the configuration.

    Raises:
        MachineError: Ray does not start here, or has no room for a single worker.
    """
    if config.name == "inline":
        return nullcontext()
    from fedlab.engine import cluster

    flower = config.name == "flower"  # its simulation starts Ray by itself, with an environment of its own
    return cluster.started(placement.workers, config.threads, placement.gpus_per_worker, config.address, leave=flower)


def launch(
    config: EngineConfig,
    main: Callable[[Grid, Context], None],
    factory: Callable[[], ClientApp],
    num_clients: int,
    run_config: UserConfig,
    *,
    placement: Placement,
    on_progress: Callable[[int, int], None] | None = None,
    on_work: WorkDone | None = None,
    client_states: Mapping[int, RecordDict] | None = None,
    fail_fast: bool = False,
) -> None:
    """Run `main` on the engine that `config` names, and clean up whatever happens.

    Args:
        config: where client work runs.
        main: the server's part, called once with the grid and the server's context.
        factory: builds the client app in each process that needs it; must be picklable for workers.
        num_clients: clients of the federation, numbered from 0.
        run_config: scalars given to the server and to every client.
        placement: see `started`.
        on_progress: called with (replies so far, messages sent); not by the engine ``flower``.
        on_work: called with (worker, span) pairs of messages that have been at work; not by the engine ``flower``.
        client_states: states to start from, as `SimulationGrid.client_states` gave them.
        fail_fast: stop a round at the first client that fails; not by the engine ``flower``.

    Raises:
        MachineError: no worker can be started.
        ConfigError: client states cannot be restored by the engine.
    """
    processes = placement.workers * config.threads
    if config.address is None and config.name != "inline" and processes > cores():
        log.warning("engine.workers: %d threads in all on %d cores make the run slower", processes, cores())
    settle_process(config.threads)
    if config.name == "flower":
        if client_states:
            raise ConfigError("engine.name", "flower", "inline or ray", "Flower's simulation cannot resume clients")
        from fedlab.engine.flower import run_flower

        run_flower(main, factory, num_clients, run_config, config, placement)
        return

    from flwr.app import Context, RecordDict
    from flwr.common.constant import SUPERLINK_NODE_ID

    from fedlab.engine.execution import RUN_ID

    with closing(_open(config, placement, factory, num_clients, run_config, on_progress, on_work, fail_fast)) as grid:
        grid.restore_client_states(client_states or {})
        main(grid, Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)))


def _open(
    config: EngineConfig,
    placement: Placement,
    factory: Callable[[], ClientApp],
    num_clients: int,
    run_config: UserConfig,
    on_progress: Callable[[int, int], None] | None,
    on_work: WorkDone | None,
    fail_fast: bool,
) -> SimulationGrid:
    vectorized = config.vectorize if isinstance(config.vectorize, int) else None
    if config.name == "inline":
        from fedlab.engine.grids.inline import InlineGrid

        return InlineGrid(
            factory,
            num_clients,
            run_config,
            on_progress=on_progress,
            on_work=on_work,
            fail_fast=fail_fast,
            vectorized=vectorized,
        )
    from fedlab.engine.grids.ray import RayGrid

    return RayGrid(
        factory,
        num_clients,
        run_config,
        workers=placement.workers,
        threads=config.threads,
        gpus_per_worker=placement.gpus_per_worker,
        chunk=config.chunk,
        retries=config.retries,
        address=config.address,
        on_progress=on_progress,
        on_work=on_work,
        fail_fast=fail_fast,
        vectorized=vectorized,
    )
