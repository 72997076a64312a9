"""One worker's resident model and the work it does for any client; plain calls, no messages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab.clients.corrections import requested
from fedlab.clients.state import StateStore
from fedlab.clients.trainer import LocalTrainer
from fedlab.config import Config
from fedlab.context import ClientState, EvaluationContext
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Samples
from fedlab.errors import FedLabError
from fedlab.exchange import Exchange
from fedlab.job import build_networks, choose_device, make_task
from fedlab.method import Method
from fedlab.order import Order


@dataclass(frozen=True)
class ClientSetup:
    """All a worker process needs to serve clients; picklable.

    Args:
        config: the run's configuration.
        method: the method object.
        federated: data of all clients.
        state_root: where this machine keeps the states of its clients.
        cache_root: where results that outlive runs are kept.
        preflight: one batch, nothing kept.
    """

    config: Config
    method: Method
    federated: FederatedData
    state_root: Path
    cache_root: Path
    preflight: bool = False


class MissingSharedError(FedLabError):
    """The client has no current copy of a server tensor; the server sends it again."""


@dataclass(frozen=True)
class Trained:
    """A client's answer: network state to send (views of the resident model), results, metrics, weight, state."""

    arrays: dict[str, Tensor]
    results: dict[str, Tensor]
    metrics: dict[str, float]
    examples: int
    version: int | None


class ClientRuntime:
    """Serves clients one after the other with one resident set of networks.

    Args:
        setup: what to serve.
    """

    def __init__(self, setup: ClientSetup) -> None:
        config, self.setup, self.method = setup.config, setup, setup.method
        data = setup.federated
        self.device = choose_device(config.engine.device)
        self.task = make_task(config, data.image_shape, data.class_names, data.num_clients)
        self.networks = build_networks(self.method, self.task, config.seed, self.device)
        self.exchange = Exchange(self.networks, self.method.exchange(), config.exchange.local)
        self.store = StateStore(setup.state_root, self.device)
        self._live = self.networks.state_dict()
        self._initial = {name: self._live[name].clone() for name in self.exchange.local}
        self._frozen = self.exchange.frozen_hash(self._live)

    def prepare(self, client: int, order: Order, version: int | None) -> Trained:
        """Answer the query before round 1."""
        state = self.store.load(client, version)
        trainer = self._trainer(client, order, state, {}, {})
        results = self.method.prepare(trainer)
        return Trained({}, results, trainer.metrics, trainer.examples, self._save(client, order, state, version))

    def train(
        self,
        client: int,
        order: Order,
        arrays: Mapping[str, np.ndarray],
        shared: Mapping[str, np.ndarray],
        settings: Mapping[str, object],
        version: int | None,
    ) -> Trained:
        """One client's round.

        Args:
            arrays: network state sent by the server.
            shared: server tensors sent this time.
            settings: the strategy's own settings.
            version: the client's state version.

        Raises:
            MissingSharedError: a server tensor is neither in `shared` nor in the client's state.
            FedLabError: frozen networks differ from the server's.
        """
        began = time.perf_counter()
        state = self.store.load(client, version)
        self._load(arrays, state)
        if order.frozen != self._frozen:
            raise FedLabError(
                f"frozen networks differ between server ({order.frozen}) and client {client} ({self._frozen}): "
                "every participant must load the same checkpoint"
            )
        trainer = self._trainer(client, order, state, self._receive(client, order, shared, state), settings)
        self.method.fit(trainer)
        results = self.method.client_result(trainer)
        for name in self.exchange.local:
            if not torch.equal(self._live[name], self._initial[name]):
                state[f"network/{name}"] = self._live[name].clone()
        metrics = {**trainer.metrics, "seconds": time.perf_counter() - began}
        sent = {name: self._live[name] for name in self.exchange.up}
        return Trained(sent, results, metrics, trainer.examples, self._save(client, order, state, version))

    def evaluate(
        self, client: int, order: Order, arrays: Mapping[str, np.ndarray], version: int | None
    ) -> tuple[Mapping[str, np.ndarray], dict[str, float], int]:
        """Sufficient statistics, their values and the number of test samples of one client."""
        self._load(arrays, self.store.load(client, version) if self.exchange.local else ClientState())
        self.networks.eval()
        data = self.setup.federated.client(client)
        context = EvaluationContext(
            data=self._columns(data.test),
            batch_size=self.setup.config.evaluation.batch_size,
            **self._work(order, client),
        )
        with torch.inference_mode():
            sums = self.method.evaluate(context)
        count = len(data.test)
        return sums, self.method.evaluation_values(sums, self.task) if count else {}, count

    def _trainer(
        self,
        client: int,
        order: Order,
        state: ClientState,
        shared: dict[str, Tensor],
        settings: Mapping[str, object],
    ) -> LocalTrainer:
        data = self.setup.federated.client(client)
        work = self._work(order, client)
        del work["scope"]
        return LocalTrainer(
            method=self.method,
            data=self._columns(data.train),
            state=state,
            shared=shared,
            client=client,
            fingerprint=data.fingerprint,
            cache=self.setup.cache_root,
            correct=partial(requested, settings),
            **work,
        )

    def _work(self, order: Order, client: int) -> dict[str, Any]:
        config = self.setup.config
        return {
            "task": self.task,
            "networks": self.networks,
            "training": config.training,
            "device": self.device,
            "seed": config.seed,
            "round": order.round,
            "rounds": order.rounds,
            "plan": order.plan,
            "scope": ("client", client),
            "preflight": self.setup.preflight,
        }

    def _columns(self, samples: Samples) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values).to(self.device) for name, values in samples.columns.items()}

    @torch.no_grad()
    def _load(self, arrays: Mapping[str, np.ndarray], state: ClientState) -> None:
        """Give the resident networks this client's full starting state."""
        for name in self.exchange.down:
            _copy(self._live[name], arrays[name])
        for name in self.exchange.local:
            self._live[name].copy_(state.get(f"network/{name}", self._initial[name]))

    def _receive(
        self, client: int, order: Order, sent: Mapping[str, np.ndarray], state: ClientState
    ) -> dict[str, Tensor]:
        received: dict[str, Tensor] = {}
        for name, wanted in order.shared.items():
            held = state.get(f"shared-version/{name}")
            if name in sent:
                state[f"shared/{name}"] = torch.from_numpy(np.array(sent[name]))
                state[f"shared-version/{name}"] = torch.tensor(wanted)
            elif held is None or int(held) != wanted:
                raise MissingSharedError(f"client {client} lacks version {wanted} of the shared tensor {name!r}")
            received[name] = state[f"shared/{name}"]
        return received

    def _save(self, client: int, order: Order, state: ClientState, version: int | None) -> int | None:
        if not state.changed:
            return version
        self.store.save(client, order.round, state, version, order.keep_from)
        return order.round


def _copy(target: Tensor, source: np.ndarray) -> None:
    if target.device.type == "cpu":
        np.copyto(target.numpy(), source)  # torch warns about the read-only arrays of the object store
    else:
        target.copy_(torch.from_numpy(np.array(source)))
