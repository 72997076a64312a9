"""Flower's ServerApp for a deployment. It runs the same round loop as a simulation."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlab.assembly import make_method
from fedlab.config.modules import search
from fedlab.data.normalize import denormalizer
from fedlab.protocol.runconfig import unpack
from fedlab.report.page import report_quietly
from fedlab.server.asynchronous import make_loop
from fedlab.server.setup import ServerSetup
from fedlab.server.strategies import check_participants, make_strategy
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.recording import open_session

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run on the nodes of a deployment. The run folder is written on the machine of the ServerApp."""
    config, expected = unpack(context.run_config)
    search([*config.modules, Path.cwd()])
    torch.set_num_threads(config.engine.threads)
    method, strategy = make_method(config.method), make_strategy(config.federation.strategy)
    folder = RunFolder.create(
        Path(os.environ.get("FEDLAB_RUNS", config.tracking.folder)),
        config.tracking.name,
        config.method.name,
        config.seed,
    )
    try:
        with open_session(config, folder, engine="deployment", workers=0, model=method.own_model) as tracker:
            setup = ServerSetup(
                config=config,
                method=method,
                strategy=strategy,
                tracker=tracker,
                folder=folder,
                denormalize=denormalizer(config.data),
                expected_clients=expected or None,
            )
            loop = make_loop(grid, setup)
            check_participants(strategy, len(loop.participants))
            loop.run()
    finally:
        report_quietly(folder)
