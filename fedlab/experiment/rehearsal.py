"""One client, one batch, in this process: a user's bug shows as a normal traceback before any worker starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedlab.assembly import server_holding
from fedlab.clients.runtime import ClientRuntime
from fedlab.clients.setup import ClientSetup
from fedlab.clients.work import Trained, WorkRequest
from fedlab.config import TrainingConfig
from fedlab.data.federated import FederatedData
from fedlab.data.samples import on_device
from fedlab.errors import ConfigError, FedLabError
from fedlab.method import Method, Plan, ServerContext
from fedlab.probes import try_probes
from fedlab.protocol.instructions import Instructions
from fedlab.server.messaging.shared import SharedTensors
from fedlab.server.privacy import check_networks
from fedlab.storage.cache import ResultCache
from fedlab.storage.checkpoint import NETWORK
from fedlab.storage.temporary import temporary_folder


@dataclass(frozen=True)
class Rehearsal:
    """What the preflight has seen.

    Args:
        requests: what the client was sent in each stage.
        keeps_state: whether the client keeps tensors from one round to the next.
    """

    requests: list[WorkRequest]
    keeps_state: bool


class Observer:
    """Is told what the preflight does. This one does nothing with it."""

    def phase(self, who: Literal["worker", "server"], what: str, round: int) -> AbstractContextManager[None]:
        """A context for work that a worker or the server does, such as ``train``, in a round; 0 is before the first."""
        return nullcontext()

    def trained(
        self, runtime: ClientRuntime, client: int, request: WorkRequest, version: int | None, answer: Trained
    ) -> None:
        """The client has done a round of training; it is what `ClientRuntime.train` was called with and returned."""


@dataclass(frozen=True)
class Stage:
    """Rounds of one kind of plan.

    Args:
        round: the first of them.
        plan: its plan.
        rounds: how many there are.
    """

    round: int
    plan: Plan
    rounds: int


def preflight(setup: ClientSetup, device: torch.device, observer: Observer | None = None) -> Rehearsal:
    """Every hook of the method once, in every stage, on the client with the most training samples; nothing is kept.

    Where clients hold different assets of the method, local training is tried with each combination of them.

    Args:
        setup: of the run.
        device: where to compute.
        observer: is told what is done.

    Raises:
        ConfigError: no client holds the samples for one training step.
        FedLabError: local work changes state that is not to be trained.
        Whatever the method, the model or the data raise.
    """
    rounds, method, config = setup.config.federation.rounds, setup.method, setup.config
    privacy, stages = setup.components.privacy, setup.components.stages
    client, at = largest_client(setup.federated), observer or Observer()
    with temporary_folder("preflight") as folder:
        runtime = ClientRuntime(replace(setup, preflight=True, state_root=folder), device)
        live = runtime.networks.state_dict()
        shared, private = SharedTensors(), dict[str, Tensor]()
        held = {name: on_device(setup.federated.server(name), device) for name in setup.federated.dataset.server}
        cache = ResultCache(
            setup.cache_root, lambda: setup.federated.server_fingerprint, config.seed, device, keep=False
        )

        def server(
            round: int, plan: Plan, before: Mapping[str, Tensor], results: Mapping[str, Tensor]
        ) -> ServerContext:
            return ServerContext(
                before=before,
                after=live,
                shared=shared,
                private=private,
                data=held,
                results={client: results},
                batch_size=config.evaluation.batch_size,
                task=runtime.task,
                networks=runtime.networks,
                training=stages.training(plan),
                device=device,
                seed=config.seed,
                round=round,
                rounds=rounds,
                plan=plan,
                cache=cache,
                preflight=True,
                holding=server_holding(setup.components, runtime.task, device, setup.cache_root),
            )

        first = method.plan(1, rounds)
        version: int | None = None
        answer: Mapping[str, Tensor] = {}
        if method.overrides("prepare"):
            with at.phase("worker", "prepare", 0):
                prepared = runtime.prepare(client, Instructions(0, rounds, first), None)
            version, answer = prepared.version, prepared.results
        with at.phase("server", "prepare", 0):
            method.server_prepare(server(0, first, {}, answer))
        try_probes(setup.components.probes, method, runtime.networks, held)

        others = _holding_other_assets(runtime, client)
        asked = Instructions(0, rounds, first)
        prepares = method.overrides("prepare")
        versions = {other: runtime.prepare(other, asked, None).version if prepares else None for other in others}
        requests = []
        for stage in stages_of(method, rounds):
            round, plan = stage.round, stage.plan
            exchange = runtime.enter(plan)
            check_networks(config, privacy, exchange, runtime.networks)
            before = {name: live[name].clone() for name in (*exchange.down, *exchange.fixed)}
            arrays = {name: before[name].cpu().numpy() for name in exchange.down}
            for name in exchange.once:
                shared[f"{NETWORK}{name}"] = live[name]
            extras: dict[str, np.ndarray] = {name: value.cpu().numpy() for name, value in shared.items()}
            instructions = Instructions(round, rounds, plan, dict(shared.versions), exchange.frozen_hash(live))
            request = WorkRequest(instructions, arrays, extras)
            requests.append(request)
            with at.phase("worker", "train", round):
                trained = runtime.train(client, request, version)
            _refuse_idleness(trained, setup.federated.num_train(client), stages.training(plan))
            changed = [name for name in exchange.fixed if not torch.equal(live[name], before[name])]
            if changed:
                raise FedLabError(
                    f"local work changes {changed[0]!r} in round {round}, which exchange() does not let a client "
                    "train: put it into a group that is averaged or local, or leave it alone"
                )
            at.trained(runtime, client, request, version, trained)
            version = trained.version
            for other in others:
                runtime.train(other, request, versions[other])
            with at.phase("server", "update", round):
                method.server_update(server(round, plan, before, trained.results))
            with at.phase("worker", "evaluate", round):
                runtime.evaluate(client, request, version)
            if any(one.mergeable is not None for one in setup.components.probes):
                runtime.probe(client, request, version, None)
            if method.overrides("server_evaluate"):
                with at.phase("server", "evaluate", round):
                    method.server_evaluate(server(round, plan, {}, {}))
        runtime.assets.check_unchanged()
        return Rehearsal(requests, version is not None)


def largest_client(federated: FederatedData) -> int:
    """The client with the most training samples among those that may train, the first of several."""
    clients = (client for client in range(federated.num_clients) if client not in federated.unseen)
    return max(clients, key=federated.num_train, default=0)


def _holding_other_assets(runtime: ClientRuntime, client: int) -> list[int]:
    """For everything else than what a client holds of the method's assets, the largest client that holds exactly it."""
    data, holdings = runtime.setup.federated, runtime.holdings
    if not runtime.assets.names:
        return []
    training = (other for other in range(data.num_clients) if other not in data.unseen)
    found = holdings.different(training)
    return [max(others, key=data.num_train) for held, others in found.items() if held != holdings.of(client)]


def _refuse_idleness(trained: Trained, samples: int, training: TrainingConfig) -> None:
    """Refuse a stage in which nobody can take a step, since the client with the most samples cannot."""
    effort = trained.effort
    if effort is None or effort.batches or not effort.reason or samples >= training.batch_size:
        return
    if not samples:
        raise ConfigError("data.partition", "no training samples on any client", "a client that can train", "change it")
    if training.drop_last:
        raise ConfigError(
            "training.batch_size",
            training.batch_size,
            f"at most {samples}, the training samples of the largest client, as training.drop_last leaves out batches "
            "that are not full: no client could take a single step",
            "lower it, or set training.drop_last: false",
        )


def stages_of(method: Method, rounds: int) -> list[Stage]:
    """Every kind of plan; numbers may change every round, flags and names make a new kind."""
    kinds: dict[object, Stage] = {}
    for round in range(1, rounds + 1):
        plan = method.plan(round, rounds)
        flags = tuple(sorted((name, value) for name, value in plan.items() if isinstance(value, bool | str)))
        key = flags, tuple(method.exchange(plan))
        known = kinds.get(key, Stage(round, plan, 0))
        kinds[key] = replace(known, rounds=known.rounds + 1)
    return list(kinds.values())
