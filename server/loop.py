"""The round loop: prepare, then per round plan → compose → deliver → sum → strategy → server → evaluate → record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.assembly import build_networks, make_task
from fedlab.config import TrainingConfig
from fedlab.engine.grids.base import SimulationGrid
from fedlab.method import Plan
from fedlab.method.exchange import Exchanges, lasting, personalized
from fedlab.protocol.instructions import Instructions
from fedlab.server.callbacks import CallbackRunner
from fedlab.server.checkpoints import Checkpoints
from fedlab.server.contexts import Contexts
from fedlab.server.evaluating import Evaluator
from fedlab.server.evaluation import Evaluation
from fedlab.server.ledger import Ledger, payload_bytes
from fedlab.server.messaging.asked import Delivered
from fedlab.server.messaging.delivery import Delivery
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.inspection import Training
from fedlab.server.messaging.profiles import MEASURED, num_batches
from fedlab.server.messaging.replies import metrics_of, results_of, weighted_means
from fedlab.server.messaging.shared import state_in
from fedlab.server.participation.devices import ClientWork, planned, upload_bytes
from fedlab.server.participation.selection import ClientSelector, Selection
from fedlab.server.privacy import CentralMechanism, ExampleAccount, check_networks, make_account
from fedlab.server.records import RunWriter
from fedlab.server.reporting import Reporter
from fedlab.server.resuming import check_task
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import Checkpoint, restore
from fedlab.server.state import ServerState
from fedlab.server.strategies import round_strategy
from fedlab.server.strategies.flower import seen_part
from fedlab.server.strategies.rounds import Cohort, TrainingRound
from fedlab.server.tally import Tally
from fedlab.server.watch import Watch
from fedlab.storage.checkpoint import NETWORK, START

State = Mapping[str, Tensor]
Results = Mapping[int, State]


class FederatedLoop:
    """One run on a grid.

    Args:
        grid: Flower grid that reaches the clients.
        setup: the run.
        directory: the clients of the grid, which has been opened.
    """

    def __init__(self, grid: Grid, setup: ServerSetup, directory: ClientDirectory) -> None:
        config, components = setup.config, setup.components
        self.grid, self.setup, self.config, self.method = grid, setup, config, setup.method
        self.tracker, self.writer, self.directory = setup.tracker, RunWriter.of(setup), directory
        self.device, self.stages = setup.device, components.stages
        self.participants = directory.may_train(setup.holds_out)
        self.task = make_task(config, *directory.described, setup.asset_paths, setup.components.network)
        self.networks = build_networks(self.method, self.task, config.seed, self.device, config.init)
        self.exchanges = Exchanges(self.networks, self.method, config.exchange.local)
        stages = self.exchanges.over(map(self._plan, range(1, config.federation.rounds + 1)))
        state = self.networks.state_dict()
        self._built = {name: state[name].clone() for name in personalized(stages)}
        self.exchange = self.exchanges.enter(self._plan(1))
        check_networks(config, components.privacy, self.exchange, self.networks)
        everyone = len(self.participants) == len(directory.clients)
        training = None if everyone else map(directory.node, self.participants)
        seen = seen_part(grid, directory.nodes) if directory.deployed else grid  # others may be connected too
        self.state = ServerState(
            network=state,
            lasting=lasting(stages),
            strategy=round_strategy(setup.strategy, seen, training, config.seed),
            selector=ClientSelector(setup.rules, self._examples),
            watch=Watch(self.task.num_classes),
            account=make_account(setup, len(self.participants)),
            callbacks=CallbackRunner(setup, state),
        )
        self.reporter = Reporter(setup.tracker, self.state, directory, config.federation.rounds)
        self.selection = Selection()
        self.contexts = Contexts(setup, self.task, self.networks, self.state, directory, self.device)
        self.state.assets = directory.same_assets(self.contexts.holding)
        self.tally = Tally(setup, directory, self.state.strategy, self.state.watch)
        self.checkpoints = Checkpoints(setup, self.task, self.state, grid, directory, self.writer)
        shared, versions = self.state.shared, self.state.versions
        self.delivery = Delivery(grid, directory, shared, versions, config.federation, self.tracker, self.tally)
        self.evaluator = Evaluator(
            setup,
            self.task,
            self.networks,
            self.contexts,
            directory,
            self.delivery,
            self.state.strategy,
            self.tally,
            self.participants,
        )
        self.uploads = upload_bytes(self.networks, components.chain)
        self._frozen: dict[tuple[str, ...], str] = {}
        if isinstance(grid, SimulationGrid):
            grid.measure_by(lambda kind, client: self._num_batches(kind, client) if kind in MEASURED else 1.0)

    # the run

    def run(self, until: int | None = None, start: Checkpoint | None = None) -> None:
        """All rounds, or those up to `until`, from the beginning or from a checkpoint.

        Raises:
            ClientError: a client failed and ``federation.on_client_error`` is ``stop``.
        """
        rounds = self.config.federation.rounds
        self.tracker.emit(
            "federation",
            **self.method.about(),
            clients=self.task.num_clients,
            parameters=sum(p.numel() for p in self.networks.parameters()),
            device=str(self.device),
            input_shape=self.task.input_shape,
            classes=self.task.class_names,
        )
        if start is None:
            self.tally.start(self.config, self.participants)
            self._prepare()
            if self.setup.components.probes:
                self._probe()
            self.writer.figures(0, self.contexts.figures)
        else:
            check_task(start, self.task, self.state.assets)
            restore(self.state, start, self.device)
        done, last = 0 if start is None else start.round, min(until or rounds, rounds)
        callbacks = self.state.callbacks
        callbacks.run_start(done)
        self.reporter.start(done + 1)
        while done < last and callbacks.stopped is None:
            done += 1
            self._round(done)
            self.checkpoints.after(done, done == last or callbacks.stopped is not None)
            self.writer.figures_after(done, self.contexts.figures)
        if done == rounds or callbacks.stopped is not None:
            callbacks.run_end(done)
            self.writer.finish(done, self.contexts.figures)
            self.tracker.stopped = None if callbacks.stopped is None else asdict(callbacks.stopped)

    def _prepare(self) -> None:
        """The work before round 1: the clients' answers to one query, then the server's own preparation."""
        plan = self._plan(1)
        results: Results = {}
        if self.method.overrides("prepare"):
            content = RecordDict()
            messages = [Message(content, self.directory.node(client), "query.prepare") for client in self.participants]
            with self.reporter.phase(0, "prepare", len(messages)):
                answers = self.delivery.carry(messages, self._instructions(0, plan, ()), "prepare").answers
                self.tally.timings(0, "prepare", answers)
                results = self._results(answers)
            ledger = Ledger()
            for client, sent in results.items():
                ledger.received(client, {"results": payload_bytes(sent)})
            self.tracker.emit("ledger", round=0, rows=ledger.rows())
            self.tracker.emit("prepared", bytes_down=0, bytes_up=ledger.up)
        with self.reporter.phase(0, "server", 0), self.contexts.draws(0, "prepare"):
            context = self.contexts.work(0, plan, results=results)
            self.method.server_prepare(context)
        self.tally.heard(context, "server")

    def _round(self, round: int) -> None:
        self.reporter.start_round()
        self.state.callbacks.round_start(round)
        # step 1: the method plans the round, and what it exchanges
        plan = self._plan(round)
        self._enter(plan)
        before = {name: self.state.network[name].clone() for name in self.exchange.down}
        # step 2: sampler and strategy compose the messages of the cohort
        told, messages = self._compose(round, before)
        self.tally.composed(round, len(messages), self.selection.left_out)
        # step 3: they are delivered, and the clients train
        with self.reporter.phase(round, "train", len(messages)):
            delivered = self._carry(messages, round, plan)
            metrics = self._client_metrics(round, delivered.answers)
            self.tally.training(round, delivered.answers)
            self.tally.timings(round, "train", delivered.answers)
            results = self._results(delivered.answers)
        # step 4: the strategy makes the new state of their sum, then the method does its own work on the server
        with self.reporter.phase(round, "server", 0):
            server = self.contexts.work(round, plan, before, results)
            if messages or self._mechanism:  # a round in which nobody takes part changes nothing, but noise must come
                self._aggregate(told, delivered)
                with self.contexts.draws(round, "update"):
                    self.method.server_update(server)
        self.tally.heard(server, "server")
        # step 5: evaluation, on the clients and on the server
        evaluation = self._evaluate(round, plan) if self._evaluates(round) else None
        # step 6: the record
        record = self.reporter.round(
            round, self.exchange, delivered, results, metrics, server.metrics, self.selection.seconds
        )
        # step 7: the callbacks, of which one may end the run; a last round is always evaluated
        measured = None if evaluation is None else self._measured(round, record, evaluation)
        self.state.callbacks.round_end(round, record, measured)
        if evaluation is None and self.state.callbacks.stopped is not None:
            self._measured(round, record, self._evaluate(round, plan))

    # what goes out

    def _plan(self, round: int) -> Plan:
        return self.method.plan(round, self.config.federation.rounds)

    def _enter(self, plan: Plan) -> None:
        """Take up the exchange of a round; what is to be sent once becomes a new version where it has changed."""
        self.exchange = self.exchanges.enter(plan)
        network, shared, built = self.state.network, self.state.shared, self._built
        once = {f"{NETWORK}{name}": network[name] for name in self.exchange.once}
        for name in self.exchange.local:
            # clients build the same start by themselves, unless an earlier stage has changed it on the server
            if name in built and not torch.equal(network[name], built[name]):
                once[f"{START}{name}"] = network[name]
        for key, value in once.items():
            held = shared.get(key)
            if held is None or not torch.equal(held, value):
                shared[key] = value

    def _state_sent_once(self) -> list[str]:
        """Shared tensors that are network state and that this round's exchange makes clients hold."""
        starts = (f"{START}{name}" for name in self.exchange.local)
        kept = (f"{NETWORK}{name}" for name in self.exchange.once)
        return [*kept, *(name for name in starts if name in self.state.shared)]

    def _held(self) -> list[str]:
        """Shared tensors that a client must hold to train in this round."""
        return [*(name for name in self.state.shared if state_in(name) is None), *self._state_sent_once()]

    def _instructions(self, round: int, plan: Plan, held: Iterable[str]) -> Instructions:
        """The instructions of a phase in which clients must hold the shared tensors `held`."""
        frozen = self.exchange.frozen
        if frozen not in self._frozen:
            self._frozen[frozen] = self.exchange.frozen_hash(self.state.network)
        return Instructions(
            round=round,
            rounds=self.config.federation.rounds,
            plan=plan,
            shared={name: self.state.shared.versions[name] for name in held},
            frozen=self._frozen[frozen],
            keep_for=self.state.checkpoints,
        )

    def _compose(self, round: int, arrays: State) -> tuple[TrainingRound, list[Message]]:
        """What the strategy is told of the round, and its messages to the clients that were chosen."""
        strategy = self.state.strategy
        present = self.delivery.presence.choosable(self.participants, round, strategy.fewest)
        if not strategy.chooses_clients:
            training = self.stages.training(self._plan(round))
            work = partial(self._work, training, self._held())
            self.selection = self.state.selector.choose(self.participants, round, work, present)
        settings = ConfigRecord({**self._mechanism.client_settings()} if self._mechanism else {})
        told = self._told(round, self.selection.clients)
        return told, strategy.train(told, arrays, settings)

    def _told(self, round: int, clients: Sequence[int]) -> TrainingRound:
        """What the strategy is told of a round with these clients."""
        private, exchange = self._mechanism, self.exchange
        return TrainingRound(
            number=round,
            cohort=Cohort(tuple(map(self.directory.node, clients)), tuple(self._examples(clients))),
            population=self.task.num_clients - (len(self.directory.clients) - len(self.participants)),
            weight_of={name: "uniform" if private else exchange.group_of[name].weight for name in exchange.up},
            trained=frozenset(name for name, p in self.networks.named_parameters() if p.requires_grad),
            release=partial(private.release, round, exchange.up) if private else None,
        )

    @property
    def _mechanism(self) -> CentralMechanism | None:
        """The server's half of client-level privacy."""
        return self.state.account if isinstance(self.state.account, CentralMechanism) else None

    def _carry(self, messages: Sequence[Message], round: int, plan: Plan) -> Delivered:
        steps = {str(client): limit for client, limit in self.selection.steps.items()}
        instructions = replace(self._instructions(round, plan, self._held()), steps=steps)
        return self.delivery.carry(messages, instructions, "train", self._training())

    def _training(self) -> Training:
        """What the clients are expected to send in answer to messages of training."""
        strategy, private, exchange = self.state.strategy, self._mechanism, self.exchange
        trained = {name for name, p in self.networks.named_parameters() if p.requires_grad} & set(exchange.up)
        return Training(
            groups={name: exchange.group_of[name].name for name in exchange.up},
            chain=self.setup.components.chain,
            returned=strategy.returned(trained),
            metrics={**strategy.metrics, **(private.metrics if private else {})},
            averaged=not strategy.chooses_clients,
            summed=not self.directory.deployed,
            withholdable=frozenset(exchange.averaged if self.method.overrides("contributes") else exchange.needs),
            private=isinstance(self.state.account, ExampleAccount),
        )

    def _examples(self, clients: Sequence[int]) -> list[int]:
        return [profile.train for profile in self.directory.profiles(clients)]

    def _num_batches(self, kind: str, client: int) -> float:
        training = self.stages.training(self._plan(self.reporter.current[0]))
        return num_batches(kind, self.directory.profile(client), training, self.config.evaluation.batch_size)

    def _work(self, training: TrainingConfig, held: Iterable[str], client: int) -> ClientWork:
        """A client's round on the virtual clock; `held` are the shared tensors that it must have for it."""
        exchange, shared, extra = self.exchange, self.state.shared, self.state.strategy.extra_bytes()
        sent = sum(shared.bytes_of(name) for name in shared.outdated(client, held))
        down = sum(exchange.sizes[name] for name in exchange.down) + extra + sent
        up = sum(self.uploads[name] for name in exchange.up) + extra
        (examples,) = self._examples([client])
        return planned(training, examples, down, up, poisson=isinstance(self.state.account, ExampleAccount))

    # what comes back

    @torch.no_grad()
    def _aggregate(self, told: TrainingRound, delivered: Delivered) -> None:
        self.state.strategy.aggregate(told, delivered.replies, delivered.answers, self.state.network)

    def _results(self, answers: Iterable[Message]) -> Results:
        found = ((self.directory.client(reply.metadata.src_node_id), results_of(reply)) for reply in answers)
        return {c: {name: t.to(self.device) for name, t in sent.items()} for c, sent in found if sent is not None}

    def _client_metrics(self, round: int, answers: Iterable[Message]) -> dict[str, float]:
        """Means over clients; each client's own figures are recorded beside them."""
        reported, spending = [], self.state.account
        for reply in answers:
            metrics = metrics_of(reply)
            client = self.directory.client(reply.metadata.src_node_id)
            spent = spending.learn(client, reply) if spending else None
            private = {"privacy": spent} if spent is not None else {}
            self.tracker.emit("client", round=round, client=client, metrics=metrics, **private)
            self.state.selector.learn(client, metrics)
            reported.append(metrics)
        return weighted_means(reported)

    # evaluation

    def _evaluates(self, round: int) -> bool:
        return round % self.config.evaluation.every == 0 or round == self.config.federation.rounds

    def _evaluate(self, round: int, plan: Plan) -> Evaluation:
        arrays = {name: self.state.network[name].clone() for name in self.exchange.down}
        messages = self.evaluator.messages(round, arrays)
        held = self._held() if self.config.evaluation.personalized else self._state_sent_once()
        instructions = self._instructions(round, plan, held)
        with self.reporter.phase(round, "evaluate", len(messages)):
            return self.evaluator.evaluate(round, plan, arrays, messages, instructions)

    def _measured(self, round: int, record: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Any]:
        """Tell of an evaluation, and return what was told."""
        fields = {"round": round, **evaluation.as_event()}
        self.tracker.emit("evaluation", **fields)
        self.state.callbacks.evaluated(round, record, fields)
        return fields

    def _probe(self) -> None:
        """Measure before round 1 what the features contain.

        State that is sent once travels like all other state here, because its sending is counted in round 1.
        """
        arrays = {name: self.state.network[name].clone() for name in (*self.exchange.down, *self.exchange.once)}
        with self.reporter.phase(0, "evaluate", 0):
            found = self.evaluator.before(arrays, self._instructions(0, self._plan(1), ()))
        self.tracker.emit("probed", round=0, **found.as_event())
