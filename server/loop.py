"""The round loop: prepare, then per round train → aggregate → server phase → evaluate → record."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.checkpoint import save_checkpoint
from fedlab.context import FigureContext, ServerContext
from fedlab.engine.messages import (
    ARRAYS,
    EXTRAS,
    METRICS,
    NUM_EXAMPLES,
    array_record,
    config_record,
    metric_record,
    required,
    to_numpy,
    to_record,
)
from fedlab.errors import ClientError, FedLabError
from fedlab.exchange import NETWORK, Exchanges
from fedlab.job import build_networks, choose_device, make_task, stage_training
from fedlab.method import Plan
from fedlab.order import Order
from fedlab.pictures import ImageGrid, save_picture, save_sheet
from fedlab.runfolder import write_atomic
from fedlab.seeding import derive_seed
from fedlab.server.directory import Directory
from fedlab.server.evaluation import Evaluation, merge_evaluations
from fedlab.server.sampling import make_sampler
from fedlab.server.setup import ServerSetup
from fedlab.server.shared import SharedTensors
from fedlab.server.strategies.average import AveragingStrategy, Cohort

MISSING = "fedlab.missing"


class FederatedLoop:
    """One run on a grid.

    Args:
        grid: Flower grid that reaches the clients.
        setup: the run.
    """

    def __init__(self, grid: Grid, setup: ServerSetup) -> None:
        config = setup.config
        self.grid, self.setup, self.config, self.method = grid, setup, config, setup.method
        self.strategy, self.tracker = setup.strategy, setup.tracker
        self.device = choose_device(config.engine.device)
        self.directory = Directory(grid, setup.expected_clients, config.federation.timeout)
        self.clients = self.directory.clients
        (first,) = self.directory.profiles(self.clients[:1])
        self.task = make_task(config, first.columns, first.classes, first.clients)
        self.networks = build_networks(self.method, self.task, config.seed, self.device)
        self.exchanges = Exchanges(self.networks, self.method, config.exchange.local)
        self.exchange = self.exchanges.enter(self.method.plan(1, config.federation.rounds))
        self.state = self.networks.state_dict()
        self.shared = SharedTensors()
        self.private: dict[str, Tensor] = {}
        self.sampler = make_sampler(config.federation.sampler, config.seed)
        self.checkpointed = 0
        self._seconds: dict[str, float] = {}
        self._current = (0, "profile")

    # the run

    def run(self) -> None:
        """All rounds.

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
        self._prepare()
        self._figures(0)
        began = time.perf_counter()  # preparation says nothing about the time the rounds take
        for round in range(1, rounds + 1):
            self._seconds = {}
            self._round(round, rounds, began)
            if round == 1 or round == rounds:
                self._figures(round)
            if round % self.config.tracking.checkpoint_every == 0 or round == rounds:
                self._checkpoint(round)
        self._artifacts()

    def progress(self, done: int, total: int) -> None:
        """The engine's word on how far the present phase is."""
        round, phase = self._current
        self.tracker.emit("progress", round=round, phase=phase, done=done, total=total)

    def _prepare(self) -> None:
        results: dict[int, Mapping[str, Tensor]] = {}
        if self.method.overrides("prepare"):
            content = RecordDict({"fedlab": self._order(0, {})})
            messages = [Message(content, self.directory.node(c), "query.prepare") for c in self.clients]
            with self._phase(0, "prepare", len(messages)):
                results = self._results(self._send(messages, 0, "prepare"))
            self.tracker.emit("prepared", bytes_down=0, bytes_up=_bytes(results))
        with self._phase(0, "server", 0):
            self.method.server_prepare(self._server_context(0, {}, self.state, results))

    def _round(self, round: int, rounds: int, began: float) -> None:
        plan = self.method.plan(round, rounds)
        self._enter(plan)
        before = {name: self.state[name].clone() for name in self.exchange.down}
        sent = to_record(before)
        messages, down = self._compose(round, plan, sent)
        with self._phase(round, "train", len(messages)):
            replies = self._send(messages, round, "train")
            replies += self._send_again(round, replies, messages)
            answers = [reply for reply in replies if not reply.has_error() and MISSING not in reply.content]
            trained = [self.directory.client(reply.metadata.src_node_id) for reply in answers]
            for client in trained:
                self.shared.delivered(client)
            metrics = self._client_metrics(round, answers)
            results = self._results(answers)
        with self._phase(round, "server", 0):
            self._aggregate(round, answers)
            server = self._server_context(round, before, self.state, results, plan)
            self.method.server_update(server)
        evaluation = self._evaluate(round) if self._evaluates(round) else None
        up = self._bytes_up(answers)
        if results:
            up["results"] = _bytes(results)
        groups = {name: {"down": down.get(name, 0), "up": up.get(name, 0)} for name in {**down, **up}}
        elapsed = time.perf_counter() - began
        self.tracker.emit(
            "round",
            round=round,
            rounds=rounds,
            clients=trained,
            train=metrics,
            server=server.metrics,
            bytes_down=sum(down.values()),
            bytes_up=sum(up.values()),
            bytes=groups,
            seconds=dict(self._seconds),
            eta_seconds=elapsed / round * (rounds - round),
        )
        if evaluation is not None:
            self.tracker.emit("evaluation", round=round, **evaluation.as_event())

    def _enter(self, plan: Plan) -> None:
        """Take up the exchange of a round; what is to be sent once becomes a new version where it has changed."""
        self.exchange = self.exchanges.enter(plan)
        for name in self.exchange.once:
            held = self.shared.get(f"{NETWORK}{name}")
            if held is None or not torch.equal(held, self.state[name]):
                self.shared[f"{NETWORK}{name}"] = self.state[name]

    def _bytes_up(self, answers: list[Message]) -> dict[str, int]:
        """Payload bytes that came back, by group."""
        sizes, total = self.exchange.bytes_by_group(self.exchange.up), Counter[str]()
        for reply in answers:
            record = config_record(reply.content, "fedlab.withheld")
            withheld = record["groups"] if record is not None else ()
            assert isinstance(withheld, list | tuple)
            total.update({group: size for group, size in sizes.items() if group not in withheld})
        return dict(total)

    # messages

    def _compose(self, round: int, plan: Plan, arrays: ArrayRecord) -> tuple[list[Message], dict[str, int]]:
        """The strategy's messages, completed with the order and the shared tensors each client lacks."""
        chosen = self.sampler.sample(self.clients, round)
        if isinstance(self.strategy, AveragingStrategy):
            profiles = self.directory.profiles(chosen)
            self.strategy.cohort = Cohort(
                nodes=tuple(self.directory.node(client) for client in chosen),
                examples=tuple(profile.train for profile in profiles),
                weight_of={name: self.exchange.group_of[name].weight for name in self.exchange.up},
            )
        with _flower_sampling(derive_seed(self.config.seed, "flower sampling", round)):
            messages = list(self.strategy.configure_train(round, arrays, ConfigRecord(), self.grid))
        down = {k: v * len(messages) for k, v in self.exchange.bytes_by_group(self.exchange.down).items()}
        shared = self._complete(messages, self._order(round, plan), with_shared=True)
        for group, size in shared.items():
            down[group] = down.get(group, 0) + size
        return messages, down

    def _complete(self, messages: list[Message], order: ConfigRecord, *, with_shared: bool) -> dict[str, int]:
        """Add the order, and the shared tensors a client lacks; messages with equal content share one object.

        Returns:
            Bytes of shared tensors, by exchange group.
        """

        def lacks(message: Message) -> tuple[str, ...]:
            return self.shared.outdated(self.directory.client(message.metadata.dst_node_id)) if with_shared else ()

        # the originals stay referenced while their ids serve as keys
        todo = [(message, message.content, lacks(message)) for message in messages]
        extras: dict[tuple[str, ...], ArrayRecord] = {}
        contents: dict[tuple[int, tuple[str, ...]], RecordDict] = {}
        for message, original, names in todo:
            key = (id(original), names)
            if key not in contents:
                contents[key] = RecordDict({**original, "fedlab": order})
                if names:
                    if names not in extras:
                        extras[names] = to_record({name: self.shared[name] for name in names})
                    contents[key][EXTRAS] = extras[names]
            message.content = contents[key]
        sizes: dict[str, int] = {}
        for name, times in Counter(name for _, _, names in todo for name in names).items():
            state = name.removeprefix(NETWORK)
            group = "shared" if state == name else self.exchange.group_of[state].name
            sizes[group] = sizes.get(group, 0) + times * self.shared.bytes_of(name)
        return sizes

    def _send(self, messages: list[Message], round: int, phase: str) -> list[Message]:
        """All replies by client id; failures end the run or are left out, as configured."""
        replies = list(self.grid.send_and_receive(messages, timeout=self.config.federation.timeout))
        sent_to = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}

        def client(reply: Message) -> int:
            # a lost node is answered for by the SuperLink, so the message tells whose reply it is
            return self.directory.client(sent_to.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id))

        replies.sort(key=client)
        stop = self.config.federation.on_client_error == "stop"
        for reply in replies:
            if reply.has_error():
                failure = ClientError(client(reply), round, phase, reply.error.reason or f"code {reply.error.code}")
                if stop:
                    raise failure
                self.tracker.emit("warning", message=str(failure))
        if len(replies) < len(messages):
            late = (
                f"{len(messages) - len(replies)} of {len(messages)} clients did not answer in round {round} ({phase})"
            )
            if stop:
                raise FedLabError(f"{late} within federation.timeout = {self.config.federation.timeout} s")
            self.tracker.emit("warning", message=late)
        if not any(not reply.has_error() for reply in replies):
            raise FedLabError(f"no client answered in round {round}, phase {phase}")
        return replies

    def _send_again(self, round: int, replies: Iterable[Message], messages: Iterable[Message]) -> list[Message]:
        """Serve clients that lost their copy of a shared tensor, and forget their first answer."""
        missing = [r.metadata.src_node_id for r in replies if not r.has_error() and MISSING in r.content]
        if not missing:
            return []
        for node in missing:
            self.shared.forget(self.directory.client(node))
        repeated: list[Message] = []
        for message in messages:
            if message.metadata.dst_node_id in missing:
                content = RecordDict({key: record for key, record in message.content.items() if key != EXTRAS})
                repeated.append(Message(content, message.metadata.dst_node_id, "train"))
        order = required(config_record, repeated[0].content, "fedlab")
        self._complete(repeated, order, with_shared=True)
        return self._send(repeated, round, "train")

    def _order(self, round: int, plan: Plan) -> ConfigRecord:
        order = Order(
            round=round,
            rounds=self.config.federation.rounds,
            plan=plan,
            shared=dict(self.shared.versions),
            frozen=self.exchange.frozen_hash(self.state),
            keep_from=self.checkpointed,
        )
        return ConfigRecord({"order": order.to_json()})

    # aggregation and the server phase

    @torch.no_grad()
    def _aggregate(self, round: int, answers: list[Message]) -> None:
        shown = answers if isinstance(self.strategy, AveragingStrategy) else [_plain(*pair) for pair in _alike(answers)]
        arrays, _ = self.strategy.aggregate_train(round, shown)
        if arrays is None:
            raise FedLabError(f"the strategy formed no model in round {round} from {len(answers)} replies")
        for name, values in to_numpy(arrays).items():
            if name not in self.state:
                raise FedLabError(f"the strategy returned an array {name!r} the model does not have")
            if not np.isfinite(values).all():
                raise FedLabError(f"the strategy returned NaN or infinite values in {name!r} in round {round}")
            self.state[name].copy_(torch.from_numpy(np.array(values)))

    def _server_context(
        self,
        round: int,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        results: Mapping[int, Mapping[str, Tensor]],
        plan: Plan | None = None,
    ) -> ServerContext:
        return ServerContext(
            before=before,
            after=after,
            tensors=self.shared,
            state=self.private,
            data=self.setup.data,
            results=results,
            task=self.task,
            networks=self.networks,
            training=stage_training(self.config.training, self.method, plan or {}),
            device=self.device,
            seed=self.config.seed,
            round=round,
            rounds=self.config.federation.rounds,
            plan=plan or {},
        )

    def _results(self, replies: Iterable[Message]) -> dict[int, Mapping[str, Tensor]]:
        results: dict[int, Mapping[str, Tensor]] = {}
        for reply in replies:
            record = None if reply.has_error() else array_record(reply.content, EXTRAS)
            if record is not None:
                client = self.directory.client(reply.metadata.src_node_id)
                arrays = to_numpy(record, copy=True)
                results[client] = {name: torch.from_numpy(values).to(self.device) for name, values in arrays.items()}
        return results

    def _client_metrics(self, round: int, answers: list[Message]) -> dict[str, float]:
        """Means over clients, weighted by examples; each client's own figures are recorded beside them."""
        sums: dict[str, list[float]] = {}
        weights: dict[str, list[float]] = {}
        for reply in answers:
            metrics = _scalars(required(metric_record, reply.content, METRICS))
            client = self.directory.client(reply.metadata.src_node_id)
            self.tracker.emit("client", round=round, client=client, metrics=metrics)
            weight = metrics.pop(NUM_EXAMPLES, 1.0)
            for name, value in metrics.items():
                sums.setdefault(name, []).append(weight * value)
                weights.setdefault(name, []).append(weight)
        return {name: math.fsum(values) / (math.fsum(weights[name]) or 1.0) for name, values in sums.items()}

    # evaluation, records

    def _evaluates(self, round: int) -> bool:
        return round % self.config.evaluation.every == 0 or round == self.config.federation.rounds

    def _evaluate(self, round: int) -> Evaluation:
        arrays = to_record({name: self.state[name].clone() for name in self.exchange.down})
        if isinstance(self.strategy, AveragingStrategy):
            nodes = tuple(self.directory.node(client) for client in self.clients)
            self.strategy.cohort = Cohort(nodes, (), {})
        with _flower_sampling(derive_seed(self.config.seed, "flower evaluation", round)):
            messages = list(self.strategy.configure_evaluate(round, arrays, ConfigRecord(), self.grid))
        plan = self.method.plan(round, self.config.federation.rounds)
        self._complete(messages, self._order(round, plan), with_shared=False)
        with self._phase(round, "evaluate", len(messages)):
            replies = [reply for reply in self._send(messages, round, "evaluate") if not reply.has_error()]
            own = self.strategy.aggregate_evaluate(round, [_plain(*pair) for pair in _alike(replies)])
            clients = [self.directory.client(reply.metadata.src_node_id) for reply in replies]
            names = [profile.name for profile in self.directory.profiles(clients)]
            held = {
                name: to_numpy(required(array_record, reply.content, "sums"))
                for name, reply in zip(names, replies, strict=True)
                if _scalars(required(metric_record, reply.content, METRICS))[NUM_EXAMPLES]
            }
            merged = merge_evaluations(self.method, self.task, held)
            if self.method.overrides("server_evaluate"):
                context = self._server_context(round, {}, self.state, {}, plan)
                merged = replace(merged, server=self.method.server_evaluate(context))
        return merged if own is None else replace(merged, strategy=_scalars(own))

    def _figures(self, round: int) -> None:
        if not self.method.overrides("figures"):
            return
        for name, picture in self.method.figures(self._look(round)).items():
            path = save_picture(picture, self.setup.folder.figures / f"{name}-{round:04d}.png")
            where = path.relative_to(self.setup.folder.path).as_posix()
            self.tracker.emit(
                "figure", name=name, round=round, path=where, title=picture.title, caption=picture.caption
            )

    def _artifacts(self) -> None:
        if not self.method.overrides("artifacts"):
            return
        for name, content in self.method.artifacts(self._look(self.config.federation.rounds)).items():
            target = self.setup.folder.artifacts / name
            if isinstance(content, ImageGrid):
                path = save_sheet(content, target.with_name(f"{name}.png"), scale=2)
            else:
                path = target.with_name(f"{name}.safetensors")
                tensors = {key: value.detach().cpu().contiguous() for key, value in content.items()}
                write_atomic(path, safetensors.torch.save(tensors))
            self.tracker.emit("artifact", name=name, path=path.relative_to(self.setup.folder.path).as_posix())

    def _look(self, round: int) -> FigureContext:
        states = self.setup.client_states
        return FigureContext(
            task=self.task,
            round=round,
            tensors={name: self.shared[name].cpu() for name in self.shared if not name.startswith(NETWORK)},
            client_names=tuple(profile.name for profile in self.directory.profiles(self.clients)),
            client_state=lambda client: states.latest(client) if states is not None else None,
            denormalise=self.setup.denormalise,
        )

    def _checkpoint(self, round: int) -> None:
        tensors = {f"{NETWORK}{name}": value.cpu() for name, value in self.state.items()}
        tensors |= {f"shared/{name}": self.shared[name].cpu() for name in self.shared if not name.startswith(NETWORK)}
        tensors |= {f"server/{name}": value.cpu() for name, value in self.private.items()}
        meta = {
            "round": round,
            "seed": self.config.seed,
            "shared": self.shared.book(),
            "columns": self.task.columns,
            "class_names": list(self.task.class_names),
            "clients": self.task.num_clients,
        }
        path = save_checkpoint(self.setup.folder.checkpoints / f"round_{round:06d}", tensors, meta)
        self.checkpointed = round
        self.tracker.emit("checkpoint", round=round, path=path.relative_to(self.setup.folder.path).as_posix())

    @contextmanager
    def _phase(self, round: int, phase: str, total: int) -> Iterator[None]:
        began, self._current = time.perf_counter(), (round, phase)
        self.tracker.emit("phase_start", round=round, phase=phase, total=total)
        yield
        seconds = time.perf_counter() - began
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self.tracker.emit("phase_end", round=round, phase=phase, seconds=seconds)


@contextmanager
def _flower_sampling(seed: int) -> Iterator[None]:
    """Flower's strategies sample with the global generator; give them one that depends on the round only."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _bytes(results: Mapping[int, Mapping[str, Tensor]]) -> int:
    return sum(t.numel() * t.element_size() for sent in results.values() for t in sent.values())


def _scalars(record: MetricRecord) -> dict[str, float]:
    return {name: float(value) for name, value in record.items() if not isinstance(value, list)}


def _alike(replies: list[Message]) -> list[tuple[Message, set[str]]]:
    """Replies with the metric names they all have: Flower's strategies refuse any difference."""
    common: set[str] | None = None
    for reply in replies:
        names = set(required(metric_record, reply.content, METRICS))
        common = names if common is None else common & names
    return [(reply, common or set()) for reply in replies]


def _plain(reply: Message, names: set[str]) -> Message:
    """The reply as Flower's strategies expect it: one array record, one metric record."""
    metrics: dict[str, Any] = {k: v for k, v in required(metric_record, reply.content, METRICS).items() if k in names}
    content = RecordDict({METRICS: MetricRecord(metrics)})
    arrays = array_record(reply.content, ARRAYS)
    if arrays is not None:
        content[ARRAYS] = arrays
    return Message(content=content, metadata=reply.metadata)
