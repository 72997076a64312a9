"""One client, one batch, in this process: a user's bug shows as a normal traceback before any worker starts."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from fedlab.clients.runtime import ClientRuntime, ClientSetup
from fedlab.context import ServerContext
from fedlab.method import Plan
from fedlab.order import Order
from fedlab.server.shared import SharedTensors


def preflight(setup: ClientSetup, client: int = 0) -> None:
    """Every hook of the method once, on one client; nothing is kept.

    Raises:
        Whatever the method, the model or the data raise.
    """
    rounds, method = setup.config.federation.rounds, setup.method
    with tempfile.TemporaryDirectory(prefix="fedlab-preflight-") as folder:
        runtime = ClientRuntime(replace(setup, preflight=True, state_root=Path(folder)))
        live = runtime.networks.state_dict()
        shared = SharedTensors()

        def server(round: int, plan: Plan, before: dict[str, Tensor], results: dict[str, Tensor]) -> ServerContext:
            return ServerContext(
                before=before,
                after=live,
                tensors=shared,
                results={client: results},
                task=runtime.task,
                networks=runtime.networks,
                training=setup.config.training,
                device=runtime.device,
                seed=setup.config.seed,
                round=round,
                rounds=rounds,
                plan=plan,
                scope=("server",),
                preflight=True,
            )

        version, answer = None, {}
        if method.overrides("prepare"):
            prepared = runtime.prepare(client, Order(0, rounds), None)
            version, answer = prepared.version, prepared.results
        method.server_prepare(server(0, {}, {}, answer))

        plan = method.plan(1, rounds)
        before = {name: live[name].clone() for name in runtime.exchange.down}
        arrays = {name: value.cpu().numpy() for name, value in before.items()}
        extras: dict[str, np.ndarray] = {name: value.cpu().numpy() for name, value in shared.items()}
        frozen = runtime.exchange.frozen_hash(live)
        order = Order(1, rounds, plan, dict(shared.versions), frozen)
        trained = runtime.train(client, order, arrays, extras, {}, version)
        method.server_update(server(1, plan, before, trained.results))
        runtime.evaluate(client, order, arrays, trained.version)
