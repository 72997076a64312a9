"""One worker's resident model and the work it does for any client; plain calls, no messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedlab.assembly import adapt, build_networks, make_assets, make_task
from fedlab.clients.compression import compress
from fedlab.clients.corrections import Start, requested
from fedlab.clients.device_data import ResidentData
from fedlab.clients.local_state import LocalState, Starts
from fedlab.clients.privacy.clipping import clipped
from fedlab.clients.privacy.dp_sgd import PrivateTrainer, calibration_of
from fedlab.clients.server_tensors import ReceivedTensors, copy_received
from fedlab.clients.setup import ClientSetup
from fedlab.clients.state import StateStore
from fedlab.clients.trainer import LocalTrainer
from fedlab.clients.work import Evaluated, LocalWork, MissingSharedError, MissingStateError, Trained, WorkRequest
from fedlab.data.holdings import Holdings
from fedlab.data.samples import Samples
from fedlab.engine.memory import data_allowance
from fedlab.errors import CheckpointError, FedLabError
from fedlab.method import ClientState, EvaluationContext, Plan
from fedlab.method.assets import Holding
from fedlab.method.exchange import Exchange, Exchanges
from fedlab.method.timing import Timings, added
from fedlab.probes import client_sums
from fedlab.protocol.instructions import Instructions
from fedlab.seeding import global_generators
from fedlab.storage.cache import ResultCache
from fedlab.storage.checkpoint import NETWORK, START

RECEIVED = "received"
"""Folder of the server's tensors, beside the clients' states."""


class ClientRuntime:
    """Serves clients one after the other with one resident set of networks.

    Args:
        setup: what to serve.
        device: where to compute.
    """

    def __init__(self, setup: ClientSetup, device: torch.device) -> None:
        config, self.setup, self.method = setup.config, setup, setup.method
        self.device, data = device, setup.federated
        described = (data.columns, data.class_names, data.num_clients, data.vocabulary)
        self.task = make_task(config, *described, setup.asset_paths, setup.components.network)
        setup.components.augment.check(self.task.columns)
        self.assets = make_assets(setup.components, self.task, device, setup.cache_root)
        self.holdings = Holdings(config.data, data.partition.names, self.assets.names)
        if setup.client is not None:  # a simulation has checked it for all clients
            self.holdings.check([setup.client] if setup.client not in data.unseen else [], self.method.lacks)
        built = build_networks(self.method, self.task, config.seed, self.device, config.init)
        self.networks = adapt(built, config.training)
        self.exchanges = Exchanges(self.networks, self.method, config.exchange.local)
        self._chain, self._stages = setup.components.chain, setup.components.stages
        self._calibration = calibration_of(setup.components)
        self._parameters = frozenset(name for name, _ in self.networks.named_parameters())
        self.store = StateStore(setup.state_root, self.device)
        self.received = ReceivedTensors(setup.state_root / RECEIVED, self.device)
        budget = data_allowance(self.device) if config.engine.resident is None else config.engine.resident * 2**20
        self._resident = ResidentData(self.device, budget)
        self._live = self.networks.state_dict()
        self._local = LocalState(
            self._live,
            lambda: build_networks(self.method, self.task, config.seed, self.device, config.init).state_dict(),
            lambda: {name for exchange in self.exchanges for name in (*exchange.local, *exchange.rest)},
        )
        self._held_once: dict[str, int] = {}
        self._exchange: Exchange | None = None
        self._used: set[str] = set()
        self._frozen: dict[tuple[str, ...], str] = {}

    def holding(self, client: int) -> Holding:
        """What a client holds of the method's assets."""
        name = self.setup.federated.partition.names[client]
        return Holding(f"client {name!r}", self.holdings.of(client), self.assets)

    def examples(self, client: int) -> int:
        """A client's weight in averages by examples."""
        if not self.method.overrides("examples"):
            return self.setup.federated.num_train(client)
        return self.method.examples(self._columns(self.setup.federated.client(client).train))

    def prepare(self, client: int, instructions: Instructions, version: int | None) -> Trained:
        """Answer the query before round 1."""
        state = self._own_state(client, instructions, version)
        trainer = self._trainer(client, instructions, state, self.enter(instructions.plan), {})
        with self._draws(client, instructions, "prepare"):
            results = self.method.prepare(trainer)
        kept = self._save(client, instructions, state, version)
        return Trained({}, results, trainer.metrics, trainer.examples, kept, timings=trainer.timings)

    def train(self, client: int, request: WorkRequest, version: int | None) -> Trained:
        """One client's round.

        Args:
            client: who.
            request: what is asked of it.
            version: of its state.

        Raises:
            MissingSharedError: a server tensor has never been sent to this machine.
            MissingStateError: a node of a deployment has lost the client's state.
            FedLabError: frozen networks differ from the server's.
        """
        began = time.perf_counter()
        instructions, arrays = request.instructions, request.arrays
        state = self._own_state(client, instructions, version)
        exchange = self.enter(instructions.plan)
        tensors, starts = self._receive(client, instructions, request.shared)
        self._load(exchange, arrays, state, starts)
        frozen = self._frozen_hash(exchange)
        if instructions.frozen != frozen:
            raise FedLabError(
                f"frozen networks differ between server ({instructions.frozen}) and client {client} ({frozen}): "
                "every participant must load the same checkpoint"
            )
        trainer = self._trainer(client, instructions, state, exchange, tensors)
        with self._draws(client, instructions, "train"):
            work = self._fit(trainer, exchange, request)
            results = self.method.client_result(trainer)
        self._local.keep(exchange.local, state, starts)
        withheld = tuple(group for group in exchange.averaged if not self._contributes(trainer, exchange, group))
        sent = {name: self._live[name] for name in exchange.up if exchange.group_of[name].name not in withheld}
        extra, figures = work.finish()
        sent |= {name: value for name, value in extra.items() if name in sent or name not in exchange.group_of}
        sent, clipping = clipped(sent, arrays, request.settings)
        metrics = {**trainer.metrics, **figures, **clipping, "seconds": time.perf_counter() - began + work.seconds}
        encoded = None
        if self._chain:
            purpose = (self.setup.config.seed, client, instructions.round)
            encoded = compress(self._chain, sent, self._parameters, extra, arrays, state, exchange, purpose)
        kept = self._save(client, instructions, state, version)
        spent = trainer.spent if isinstance(trainer, PrivateTrainer) else None
        examples, effort, timings = trainer.examples, trainer.effort, trainer.timings
        return Trained(
            sent, results, metrics, examples, kept, withheld, encoded, spent, effort, timings, trainer.other_steps
        )

    def evaluate(self, client: int, request: WorkRequest, version: int | None) -> Evaluated:
        """One client's evaluation.

        Args:
            client: who.
            request: what is asked of it; strategies have no settings for this.
            version: of its state.

        Raises:
            MissingSharedError: network state that is sent once has never been sent to this machine.
        """
        context = self._evaluation(client, request, version)
        with torch.no_grad(), self._draws(client, request.instructions, "evaluate"):
            sums = self.method.evaluate(context)
        count = len(next(iter(context.data.values()), ()))
        values = self.method.evaluation_values(sums, self.task) if count else {}
        adapted: Mapping[str, np.ndarray] = {}
        if count and self.setup.config.evaluation.personalized:
            context_after = self._evaluation(client, request, version, trained=True)
            with torch.no_grad(), self._draws(client, request.instructions, "evaluate"):
                adapted = self.method.evaluate(context_after)
        held, number, timings = self._validate(client, request, version)
        return Evaluated(sums, values, count, added([context.timings, timings]), held, number, adapted)

    def _validate(
        self, client: int, request: WorkRequest, version: int | None
    ) -> tuple[Mapping[str, np.ndarray], int, Timings]:
        """Statistics of a client's validation samples, their number, and what the method has measured."""
        config = self.setup.config
        if config.data.validation is None or not config.evaluation.validation:
            return {}, 0, {}
        # a context and networks of its own, because evaluation may change both
        context = self._evaluation(client, request, version, "validation")
        count = len(next(iter(context.data.values()), ()))
        if not count:
            return {}, 0, {}
        try:
            with torch.no_grad(), self._draws(client, request.instructions, "validation"):
                return self.method.evaluate(context), count, context.timings
        except Exception as error:
            error.add_note("on the validation samples of a client; evaluation.validation: false leaves them out")
            raise

    def probe(
        self, client: int, request: WorkRequest, version: int | None, fitted: Mapping[str, np.ndarray] | None
    ) -> dict[str, np.ndarray]:
        """Sums of the probes that work on the clients' own samples; see `fedlab.probes.client_sums`.

        Args:
            client: who.
            request: what is asked of it.
            version: of its state.
            fitted: what probes have been fitted to; None asks for the sums to which they are to be fitted.

        Raises:
            MissingSharedError: network state that is sent once has never been sent to this machine.
        """
        context = self._evaluation(client, request, version)
        with self._draws(client, request.instructions, "probe"):
            return client_sums(self.setup.components.probes, self.method, context, fitted)

    def _evaluation(
        self,
        client: int,
        request: WorkRequest,
        version: int | None,
        part: Literal["test", "validation"] = "test",
        trained: bool = False,
    ) -> EvaluationContext:
        """A part of a client's samples, with the networks in the state in which they are evaluated.

        Where this is to be the state after local training, the client trains as in a round, without its part of a
        federated algorithm, and nothing of it is kept.
        """
        instructions, state = request.instructions, self._own_state(client, request.instructions, version)
        exchange = self.enter(instructions.plan)
        tensors, starts = self._receive(client, instructions, request.shared)
        self._load(exchange, request.arrays, state, starts)
        if trained:
            with self._draws(client, instructions, "personalize"):
                self.method.fit(self._trainer(client, instructions, state, exchange, tensors))
        self.networks.eval()
        data = self.setup.federated.client(client, instructions.round)
        return EvaluationContext(
            data=self._columns(data.test if part == "test" else data.validation),
            train_data=lambda: self._columns(data.train),
            validation=lambda: self._columns(data.validation),
            state=state,
            batch_size=self.setup.config.evaluation.batch_size,
            client=client,
            # what a method caches of the test samples is not that of others
            **self._work(client, instructions, lambda: data.fingerprint + ("" if part == "test" else part)),
        )

    def _contributes(self, trainer: LocalTrainer, exchange: Exchange, group: str) -> bool:
        needed = exchange.needs.get(group)
        return (needed is None or needed in trainer.holds) and self.method.contributes(trainer, group)

    def _fit(self, trainer: LocalTrainer, exchange: Exchange, request: WorkRequest) -> LocalWork:
        parameters = self._averaged_parameters(exchange)
        correction = requested(Start(parameters, request.arrays, trainer.state, request.settings))
        trainer.correction = correction
        self.method.fit(trainer)
        return LocalWork() if correction is None else LocalWork(correction.finish)

    def _trainer(
        self,
        client: int,
        instructions: Instructions,
        state: ClientState,
        exchange: Exchange,
        shared: Mapping[str, Tensor],
    ) -> LocalTrainer:
        data = self.setup.federated.client(client, instructions.round)
        columns = self._columns(data.train)
        trainer = LocalTrainer if self._calibration is None else partial(PrivateTrainer, calibration=self._calibration)
        return trainer(
            method=self.method,
            data=columns,
            state=state,
            shared=shared,
            client=client,
            client_name=data.name,
            examples=self.method.examples(columns),
            fingerprint=lambda: data.fingerprint,
            evaluating=exchange.fixed_roles,
            max_steps=instructions.steps.get(str(client)),
            validation=lambda: self._columns(data.validation),
            augment=self.setup.components.augment or None,
            **self._work(client, instructions, lambda: data.fingerprint),
        )

    def _work(self, client: int, instructions: Instructions, data: Callable[[], str]) -> dict[str, Any]:
        config = self.setup.config
        return {
            "task": self.task,
            "networks": self.networks,
            "training": self._stages.training(instructions.plan),
            "device": self.device,
            "seed": config.seed,
            "round": instructions.round,
            "rounds": instructions.rounds,
            "plan": instructions.plan,
            "cache": ResultCache(
                self.setup.cache_root, data, config.seed, self.device, keep=not self.setup.preflight, private=True
            ),
            "preflight": self.setup.preflight,
            "holding": self.holding(client),
        }

    def _averaged_parameters(self, exchange: Exchange) -> dict[str, Tensor]:
        averaged = set(exchange.up)
        return {n: p for n, p in self.networks.named_parameters() if p.requires_grad and n in averaged}

    def _draws(self, client: int, instructions: Instructions, phase: str) -> AbstractContextManager[None]:
        seed = self.setup.config.seed
        return global_generators(seed, "global", "client", client, instructions.round, phase, device=self.device)

    def _columns(self, samples: Samples) -> dict[str, Tensor]:
        return self._resident.columns(samples)

    @torch.no_grad()
    def enter(self, plan: Plan) -> Exchange:
        """Take up the exchange of a round with this plan; what clients of another stage have left is put right."""
        exchange = self.exchanges.enter(plan)
        if exchange is not self._exchange:
            self._held_once = {name: self._held_once[name] for name in exchange.once if name in self._held_once}
            for name in self._used.intersection(exchange.rest):
                self._live[name].copy_(self._local.built(name))
            self._used.difference_update(exchange.rest)
            self._used.update(exchange.down, exchange.local, exchange.once)
            self._exchange = exchange
        return exchange

    @torch.no_grad()
    def _load(self, exchange: Exchange, arrays: Mapping[str, np.ndarray], state: ClientState, starts: Starts) -> None:
        """Give the resident networks this client's full starting state."""
        if missing := sorted(set(exchange.down) - arrays.keys()):
            raise FedLabError(f"the server sent no array {missing[0]!r}, which this stage of the method needs")
        for name in exchange.down:
            copy_received(name, self._live[name], arrays[name])
        for name in arrays.keys() & set(exchange.once):  # only before round 1, where nothing is kept yet
            copy_received(name, self._live[name], arrays[name])
            self._held_once.pop(name, None)
        self._local.load(exchange.local, state, starts)

    def _frozen_hash(self, exchange: Exchange) -> str:
        if exchange.frozen not in self._frozen:
            self._frozen[exchange.frozen] = exchange.frozen_hash(self._live)
        return self._frozen[exchange.frozen]

    def _receive(
        self, client: int, instructions: Instructions, sent: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Tensor], Starts]:
        """The server's tensors at the versions ordered, and the starts of local state.

        Network state that is sent once goes into the networks.
        """
        tensors, starts = dict[str, Tensor](), dict[str, tuple[int, Tensor]]()
        for name, version in instructions.shared.items():
            if name in sent:
                self.received.put(name, version, sent[name], replace=instructions.kept is not None)
            network = name.removeprefix(NETWORK)
            if name != network and self._held_once.get(network) == version:
                continue
            held = self.received.get(name, version)
            if held is None:
                raise MissingSharedError(f"client {client} lacks version {version} of the shared tensor {name!r}")
            if name.startswith(START):
                starts[name.removeprefix(START)] = version, held
            elif name == network:
                tensors[name] = held
            else:
                with torch.no_grad():
                    self._live[network].copy_(held)
                self._held_once[network] = version
        return tensors, starts

    def _own_state(self, client: int, instructions: Instructions, version: int | None) -> ClientState:
        try:
            return self.store.load(client, version)
        except CheckpointError as error:
            if instructions.kept is None:  # a simulation's disk is the run folder's, which must not lose anything
                raise
            raise MissingStateError(str(error)) from error

    def _save(self, client: int, instructions: Instructions, state: ClientState, version: int | None) -> int | None:
        if not state.changed:
            return version
        saved = instructions.round if instructions.saved is None else instructions.saved
        self.store.save(client, saved, state, version, instructions.keep_for)
        return saved
