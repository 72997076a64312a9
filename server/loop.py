"""The round loop: prepare, then per round train → aggregate → server phase → evaluate → record."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.assembly import build_networks, make_task, stage_training
from fedlab.config import TrainingConfig
from fedlab.engine.device import choose_device
from fedlab.engine.grid import SimulationGrid
from fedlab.errors import FedLabError
from fedlab.method import FigureContext, Plan, ServerContext
from fedlab.method.exchange import Exchanges
from fedlab.protocol.encoding import expand
from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import ARRAYS, array_record, to_numpy, to_record
from fedlab.seeding import derive_seed, global_generators
from fedlab.server.evaluation import Evaluation, evaluated_clients, evaluation_of, on_server
from fedlab.server.ledger import Ledger, account, payload_bytes
from fedlab.server.messaging.delivery import Delivered, Delivery
from fedlab.server.messaging.directory import ClientDirectory, ClientNames
from fedlab.server.messaging.profiles import MEASURED, num_batches
from fedlab.server.messaging.replies import metrics_of, results_of, scalars, weighted_means, with_tests
from fedlab.server.messaging.returned import take_over
from fedlab.server.messaging.shared import SharedTensors
from fedlab.server.participation.devices import ClientWork, planned, upload_bytes
from fedlab.server.participation.selection import Participation, Selection
from fedlab.server.privacy import CentralMechanism, ExampleAccount, check_networks, make_account
from fedlab.server.records import RunWriter
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import Checkpoint, restore, snapshot
from fedlab.server.strategies.average import AveragingStrategy, Cohort
from fedlab.server.strategies.flower import TrainingGrid, as_flower_expects, flower_sampling, training_clients
from fedlab.server.tally import Tally
from fedlab.storage.checkpoint import NETWORK

State = Mapping[str, Tensor]
Results = Mapping[int, State]


class FederatedLoop:
    """One run on a grid.

    Args:
        grid: Flower grid that reaches the clients.
        setup: the run.
    """

    def __init__(self, grid: Grid, setup: ServerSetup) -> None:
        config = setup.config
        self.grid, self.setup, self.config, self.method = grid, setup, config, setup.method
        self.strategy, self.tracker, self.records = setup.strategy, setup.tracker, RunWriter(setup)
        self.device = choose_device(config.engine.device)
        self.directory = ClientDirectory(grid, setup.expected_clients, config.federation.timeout, setup.profiles)
        self.clients = self.directory.clients
        self.participants = training_clients(self.directory, setup.holds_out)
        first = self.directory.profile(self.clients[0])
        self.task = make_task(config, first.columns, first.classes, first.clients, first.vocabulary)
        self.networks = build_networks(self.method, self.task, config.seed, self.device, config.init)
        self.state = self.networks.state_dict()
        self.exchanges = Exchanges(self.networks, self.method, config.exchange.local)
        self.exchange = self.exchanges.enter(self._plan(1))
        self._upload = upload_bytes(self.networks, config.exchange.compression)
        self.shared, self.private = SharedTensors(), dict[str, Tensor]()
        self.participation, self.selection = Participation(config, self._examples), Selection()
        check_networks(config, self.exchange, self.networks)
        self.account = make_account(config, self.strategy, self.participation.sampler, len(self.participants))
        self.mechanism = self.account if isinstance(self.account, CentralMechanism) else None
        self.tally = Tally(setup, self.directory, self.task.num_classes)
        self.delivery = Delivery(grid, self.directory, self.shared, config.federation, self.tracker, self.tally)
        self._frozen: dict[tuple[str, ...], str] = {}
        self._seconds: dict[str, float] = {}
        self._current = (0, "profile")
        if isinstance(grid, SimulationGrid):
            grid.workload = lambda kind, client: self._num_batches(kind, client) if kind in MEASURED else 1.0

    # the run

    def run(self, until: int | None = None, start: Checkpoint | None = None) -> None:
        """All rounds, or those up to `until`, from the beginning or from a checkpoint.

        Raises:
            ClientError: a client failed and ``federation.on_client_error`` is ``stop``.
        """
        rounds = self.config.federation.rounds
        self.tracker.emit(
            "federation",
            title=self.method.title,
            paper=self.method.paper,
            clients=self.task.num_clients,
            parameters=sum(p.numel() for p in self.networks.parameters()),
            device=str(self.device),
            input_shape=self.task.input_shape,
            classes=self.task.class_names,
        )
        if start is None:
            self.tally.start(self.config, self.participants)
            self._prepare()
            self.records.figures(self._look(0))
        else:
            restore(self, start)
        first, last = (1 if start is None else start.round + 1), min(until or rounds, rounds)
        began = time.perf_counter()  # preparation says nothing about the time the rounds take
        for round in range(first, last + 1):
            self._seconds = {}
            self._round(round, first, began)
            if round == 1 or round == rounds:
                self.records.figures(self._look(round))
            if round % self.config.tracking.checkpoint_every == 0 or round == last:
                self.records.checkpoint(round, *snapshot(self))
        if last == rounds:
            self.records.artifacts(self._look(rounds))

    def progress(self, done: int, total: int) -> None:
        """The engine's word on how far the present phase is."""
        round, phase = self._current
        self.tracker.emit("progress", round=round, phase=phase, done=done, total=total)

    def memory(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the way of running rounds keeps from one to the next: tensors and facts for a checkpoint."""
        spent = {"privacy": self.account.book()} if self.account else {}
        return {}, {"participation": self.participation.book(), "watch": self.tally.watch.book(), **spent}

    def recall(self, start: Checkpoint) -> None:
        """Take over what `memory` gave."""
        self.tally.watch.restore(start.meta.get("watch", {}))
        self.participation.restore(start.meta["participation"])
        if self.account:
            self.account.restore(start.meta["privacy"])

    def _prepare(self) -> None:
        plan = self._plan(1)
        results: Results = {}
        if self.method.overrides("prepare"):
            content = RecordDict()
            messages = [Message(content, self.directory.node(client), "query.prepare") for client in self.participants]
            with self._phase(0, "prepare", len(messages)):
                results = self._results(
                    self.delivery.carry(messages, self._instructions(0, plan, ()), "prepare").answers
                )
            ledger = Ledger()
            for client, sent in results.items():
                ledger.received(client, {"results": payload_bytes(sent)})
            self.tracker.emit("ledger", round=0, rows=ledger.rows())
            self.tracker.emit("prepared", bytes_down=0, bytes_up=ledger.up)
        with self._phase(0, "server", 0), self._draws(0, "prepare"):
            context = self._server_context(0, plan, {}, self.state, results)
            self.method.server_prepare(context)
        self.tally.sound(context)

    def _round(self, round: int, first: int, began: float) -> None:
        plan = self._plan(round)
        self._enter(plan)
        before = {name: self.state[name].clone() for name in self.exchange.down}
        messages = self._compose(round, before)
        self.tally.composed(round, len(messages), self.selection.left_out)
        with self._phase(round, "train", len(messages)):
            out = {message.metadata.dst_node_id: array_record(message.content, ARRAYS) for message in messages}
            delivery = self._carry(messages, round, plan)
            for reply in delivery.answers:
                expand(reply.content, out[reply.metadata.src_node_id])
            metrics = self._client_metrics(round, delivery.answers)
            self.tally.training(round, delivery.answers)
            results = self._results(delivery.answers)
        with self._phase(round, "server", 0):
            server = self._server_context(round, plan, before, self.state, results)
            if messages or self.mechanism:  # a round in which nobody takes part changes nothing, but noise must come
                self._aggregate(round, delivery)
                with self._draws(round, "update"):
                    self.method.server_update(server)
        self.tally.sound(server)
        evaluation = self._evaluate(round, plan) if self._evaluates(round) else None
        received = {client: payload_bytes(sent) for client, sent in results.items()}
        ledger = account(self.exchange, self.shared, self.directory, delivery, self._algorithm_bytes(), received)
        elapsed = time.perf_counter() - began
        self.tracker.emit("ledger", round=round, rows=ledger.rows())
        self.tracker.emit(
            "round",
            round=round,
            rounds=self.config.federation.rounds,
            clients=[self.directory.client(reply.metadata.src_node_id) for reply in delivery.answers],
            train=metrics,
            server=server.metrics,
            bytes_down=ledger.down,
            bytes_up=ledger.up,
            bytes=ledger.groups(),
            raw_up=ledger.raw_up(),
            seconds=dict(self._seconds),
            **self.participation.virtual(self.selection.seconds),
            eta_seconds=elapsed / (round - first + 1) * (self.config.federation.rounds - round),
            **({"privacy": self.account.spent(round)} if self.account else {}),
        )
        if evaluation is not None:
            self.tracker.emit("evaluation", round=round, **evaluation.as_event())

    # what goes out

    def _plan(self, round: int) -> Plan:
        return self.method.plan(round, self.config.federation.rounds)

    def _enter(self, plan: Plan) -> None:
        """Take up the exchange of a round; what is to be sent once becomes a new version where it has changed."""
        self.exchange = self.exchanges.enter(plan)
        for name in self.exchange.once:
            held = self.shared.get(f"{NETWORK}{name}")
            if held is None or not torch.equal(held, self.state[name]):
                self.shared[f"{NETWORK}{name}"] = self.state[name]

    def _instructions(self, round: int, plan: Plan, held: Iterable[str]) -> Instructions:
        """The order of a phase in which clients must hold the shared tensors `held`."""
        frozen = self.exchange.frozen
        if frozen not in self._frozen:
            self._frozen[frozen] = self.exchange.frozen_hash(self.state)
        return Instructions(
            round=round,
            rounds=self.config.federation.rounds,
            plan=plan,
            shared={name: self.shared.versions[name] for name in held},
            frozen=self._frozen[frozen],
            keep_for=self.records.checkpoints,
        )

    def _compose(self, round: int, arrays: Mapping[str, Tensor]) -> list[Message]:
        """The strategy's messages for the sampler's clients; Flower's strategies sample for themselves."""
        if isinstance(self.strategy, AveragingStrategy):
            training = stage_training(self.config.training, self.method, self._plan(round))
            work = partial(self._work, training)
            self.selection = self.participation.choose(self.participants, round, work)
            chosen = self.selection.clients
            self.strategy.cohort = self._cohort(chosen, round)
        with flower_sampling(derive_seed(self.config.seed, "flower sampling", round)):
            settings = ConfigRecord({**self.mechanism.client_settings()} if self.mechanism else {})
            return list(self.strategy.configure_train(round, to_record(arrays), settings, self._training_grid()))

    def _cohort(self, chosen: Sequence[int], round: int) -> Cohort:
        private = self.mechanism
        return Cohort(
            nodes=tuple(self.directory.node(client) for client in chosen),
            examples=tuple(self._examples(chosen)),
            weight_of={n: "uniform" if private else self.exchange.group_of[n].weight for n in self.exchange.up},
            trained=frozenset(n for n, p in self.networks.named_parameters() if p.requires_grad),
            population=self.task.num_clients - (len(self.clients) - len(self.participants)),
            release=partial(private.release, round, self.exchange.up) if private else None,
        )

    def _training_grid(self) -> Grid:
        if len(self.participants) == len(self.clients):
            return self.grid
        return cast(Grid, TrainingGrid(self.grid, map(self.directory.node, self.participants)))

    def _carry(self, messages: Sequence[Message], round: int, plan: Plan) -> Delivered:
        steps = {str(client): limit for client, limit in self.selection.steps.items()}
        return self.delivery.carry(
            messages, replace(self._instructions(round, plan, self.shared), steps=steps), "train"
        )

    def _examples(self, clients: Sequence[int]) -> list[int]:
        return [profile.train for profile in self.directory.profiles(clients)]

    def _num_batches(self, kind: str, client: int) -> float:
        training = stage_training(self.config.training, self.method, self._plan(self._current[0]))
        return num_batches(kind, self.directory.profile(client), training, self.config.evaluation.batch_size)

    def _work(self, training: TrainingConfig, client: int) -> ClientWork:
        """A client's round on the virtual clock."""
        exchange, extra = self.exchange, self._algorithm_bytes()
        sent = sum(self.shared.bytes_of(name) for name in self.shared.outdated(client, self.shared))
        down = sum(exchange.sizes[name] for name in exchange.down) + extra + sent
        up = sum(self._upload[name] for name in exchange.up) + extra
        (examples,) = self._examples([client])
        return planned(training, examples, down, up, poisson=isinstance(self.account, ExampleAccount))

    # what comes back

    @torch.no_grad()
    def _aggregate(self, round: int, delivery: Delivered) -> None:
        own, who = isinstance(self.strategy, AveragingStrategy), f"the strategy {type(self.strategy).__name__}"
        if not own and not self.exchange.up:  # Flower's strategies refuse replies without arrays
            return
        shown = delivery.replies if own else as_flower_expects(delivery.answers)
        arrays, _ = self.strategy.aggregate_train(round, shown)
        if arrays is None:
            raise FedLabError(f"{who} formed no model in round {round} from {len(delivery.answers)} replies")
        # FedLab's own sum in the engine, and leave out what no client contributed to
        take_over(self.state, to_numpy(arrays), () if own else shown, type(self.strategy).__name__, round)

    def _results(self, answers: Iterable[Message]) -> Results:
        found = ((self.directory.client(reply.metadata.src_node_id), results_of(reply)) for reply in answers)
        return {c: {name: t.to(self.device) for name, t in sent.items()} for c, sent in found if sent is not None}

    def _client_metrics(self, round: int, answers: Iterable[Message]) -> dict[str, float]:
        """Means over clients; each client's own figures are recorded beside them."""
        reported = []
        for reply in answers:
            metrics = metrics_of(reply)
            client = self.directory.client(reply.metadata.src_node_id)
            spent = self.account.learn(client, reply) if self.account else None
            private = {"privacy": spent} if spent is not None else {}
            self.tracker.emit("client", round=round, client=client, metrics=metrics, **private)
            self.participation.learn(client, metrics)
            reported.append(metrics)
        return weighted_means(reported)

    def _algorithm_bytes(self) -> int:
        """Payload bytes of what the algorithm sends beside the network state, each way and per client."""
        if not isinstance(self.strategy, AveragingStrategy):
            return 0
        return sum(values.nbytes for values in self.strategy.client_arrays().values())

    # evaluation

    @cached_property
    def evaluated(self) -> Sequence[int]:
        """The clients of every evaluation."""
        wanted, tested = self.config.evaluation.clients, self.directory.tested
        return evaluated_clients(wanted, self.clients, self.participants, tested, self.config.seed)

    def _evaluates(self, round: int) -> bool:
        return round % self.config.evaluation.every == 0 or round == self.config.federation.rounds

    def _evaluate(self, round: int, plan: Plan) -> Evaluation:
        arrays = to_record({name: self.state[name].clone() for name in self.exchange.down})
        if isinstance(self.strategy, AveragingStrategy):
            self.strategy.cohort = Cohort(tuple(self.directory.node(client) for client in self.evaluated))
        with flower_sampling(derive_seed(self.config.seed, "flower evaluation", round)):
            messages = list(self.strategy.configure_evaluate(round, arrays, ConfigRecord(), self.grid))
        instructions = self._instructions(round, plan, (f"{NETWORK}{name}" for name in self.exchange.once))
        with self._phase(round, "evaluate", len(messages)):
            replies = self.delivery.carry(messages, instructions, "evaluate").answers
            replies = with_tests(replies)
            own = self.strategy.aggregate_evaluate(round, as_flower_expects(replies)) if replies else None
            profiles = self.directory.profiles(self.directory.client(reply.metadata.src_node_id) for reply in replies)
            evaluation = evaluation_of(self.method, self.task, profiles, replies)
            if self.method.overrides("server_evaluate"):
                context = self._server_context(round, plan, {}, self.state, {})
                with self._draws(round, "evaluate"):
                    evaluation = on_server(evaluation, self.method.server_evaluate(context), self.setup.data)
                self.tally.sound(context)
        if own is not None:
            evaluation = replace(evaluation, strategy=scalars(own))
        self.tally.evaluation(round, evaluation, len(messages))
        return evaluation

    # contexts and records

    def _draws(self, round: int, phase: str) -> AbstractContextManager[None]:
        return global_generators(self.config.seed, "global", "server", round, phase, device=self.device)

    def _server_context(self, round: int, plan: Plan, before: State, after: State, results: Results) -> ServerContext:
        return ServerContext(
            before=before,
            after=after,
            shared=self.shared,
            private=self.private,
            data=self.setup.data,
            results=results,
            task=self.task,
            networks=self.networks,
            training=stage_training(self.config.training, self.method, plan),
            device=self.device,
            seed=self.config.seed,
            round=round,
            rounds=self.config.federation.rounds,
            plan=plan,
            cache=self.setup.cache,
        )

    def _look(self, round: int) -> FigureContext:
        states, test = self.setup.client_states, self.setup.client_test
        return FigureContext(
            task=self.task,
            round=round,
            shared={name: self.shared[name].cpu() for name in self.shared if not name.startswith(NETWORK)},
            private={name: value.cpu() for name, value in self.private.items()},
            networks=self.networks.eval(),
            data=self.setup.data,
            client_names=ClientNames(self.directory),
            client_state=lambda client: states.latest(client) if states is not None else None,
            client_test=lambda client: test(client) if test is not None else None,
            denormalize=self.setup.denormalize,
            seed=self.config.seed,
        )

    @contextmanager
    def _phase(self, round: int, phase: str, total: int) -> Iterator[None]:
        began, self._current = time.perf_counter(), (round, phase)
        self.tracker.emit("phase_start", round=round, phase=phase, total=total)
        yield
        seconds = time.perf_counter() - began
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self.tracker.emit("phase_end", round=round, phase=phase, seconds=seconds)
