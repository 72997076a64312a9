"""Where client work runs: `launch` opens the engine that the configuration names and runs the server on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab.config import EngineConfig
from fedlab.engine.machine import cores, pin_threads, settle_process
from fedlab.engine.placement import Placement, check_engine, fitting
from fedlab.engine.simulation import NOBODY, Listeners, Simulation
from fedlab.errors import ConfigError

if TYPE_CHECKING:
    from flwr.app import Context, RecordDict
    from flwr.serverapp import Grid

    from fedlab.engine.grids.base import SimulationGrid

__all__ = ["Listeners", "Placement", "Simulation", "check_engine", "fitting", "launch", "pin_threads", "started"]

log = logging.getLogger(__name__)


@contextmanager
def started(
    config: EngineConfig, placement: Placement, shared: Path | None = None, read: Sequence[Path] = ()
) -> Iterator[Placement]:
    """A context in which Ray is up, if the engine needs it. It gives the placement with the workers of the cluster.

    Args:
        config: the configuration's section ``engine``.
        placement: what `check_engine` and `fitting` returned for it.
        shared: folder that all machines of a cluster must see; None if there is none.
        read: files and folders that they must see.

    Raises:
        MachineError: Ray does not start here, has no room for a single worker, or a machine lacks what the run needs.
    """
    if config.name == "inline":
        yield placement
        return
    from fedlab.engine import cluster

    flower = config.name == "flower"  # its simulation starts Ray by itself, with an environment of its own
    asked = (placement.workers, config.threads, placement.gpus_per_worker, config.address)
    with cluster.connected(*asked, leave=flower, shared=shared, read=read) as room:
        # the cores of this machine say nothing about how many workers a cluster has room for
        whole = config.address is not None and config.workers is None
        yield replace(placement, workers=room) if whole else placement


def launch(
    config: EngineConfig,
    placement: Placement,
    main: Callable[[Grid, Context], None],
    simulation: Simulation,
    listeners: Listeners = NOBODY,
    *,
    client_states: Mapping[int, RecordDict] | None = None,
) -> None:
    """Run `main` on the engine that `config` names, and release everything afterwards, also after an error.

    Args:
        config: the configuration's section ``engine``.
        placement: what `check_engine` and `fitting` returned for it.
        main: the server's part of the run; it is called once, with the grid and the server's context.
        simulation: the clients.
        listeners: who is told how the work goes on.
        client_states: states that the clients start from, as `SimulationGrid.client_states` returned them.

    Raises:
        MachineError: no worker could be started.
        ConfigError: there are client states, and the engine cannot restore them.
    """
    processes = placement.workers * config.threads
    if config.address is None and config.name != "inline" and processes > cores():
        log.warning("engine.workers: %d threads in all on %d cores make the run slower", processes, cores())
    settle_process(config.threads)
    if config.name == "flower":
        if client_states:
            raise ConfigError("engine.name", "flower", "inline or ray", "Flower's simulation cannot resume clients")
        from fedlab.engine.flower import run_flower

        run_flower(main, simulation, config, placement)
        return

    from flwr.app import Context, RecordDict
    from flwr.common.constant import SUPERLINK_NODE_ID

    from fedlab.engine.execution import RUN_ID

    with closing(_open(config, placement, simulation, listeners)) as grid:
        grid.restore_client_states(client_states or {})
        main(grid, Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(simulation.run_config)))


def _open(config: EngineConfig, placement: Placement, simulation: Simulation, listeners: Listeners) -> SimulationGrid:
    if config.name == "inline":
        from fedlab.engine.grids.inline import InlineGrid

        return InlineGrid(simulation, config, listeners)
    from fedlab.engine.grids.ray import RayGrid

    return RayGrid(simulation, config, placement, listeners)
