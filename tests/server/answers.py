"""Three clients that answer what a test wants them to, in a simulation and as nodes of a deployment, without training.

What is real is all that reads the answers: the engine, the directory, the delivery, the strategy.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlab.config.federation import FederationConfig
from fedlab.engine import Simulation
from fedlab.engine.execution import set_task_identity
from fedlab.engine.grids.inline import InlineGrid
from fedlab.protocol.compression import make_chain
from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import ARRAYS, CONFIG, EXTRAS, METRICS, NUM_EXAMPLES, STATE, SUMS, to_record
from fedlab.server.messaging.delivery import Delivery
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.inspection import Training
from fedlab.server.messaging.profiles import Profile
from fedlab.server.messaging.shared import SharedTensors
from fedlab.server.strategies.average import Composition, FedAvg
from fedlab.server.strategies.rounds import Cohort, TrainingRound
from fedlab.server.tally import Tally
from fedlab.tracking import Tracker
from tests.server.remote import RemoteGrid

CLIENTS, EXAMPLES, TESTS = 3, 10, 4
SENT = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}

Spoil = Callable[[Message], None]


def honest(client: int, phase: str) -> RecordDict:
    """What a client answers whose work went well."""
    metrics = MetricRecord({"ce": 1.0, NUM_EXAMPLES: TESTS if phase == "evaluate" else EXAMPLES})
    if phase == "train":
        arrays = to_record({name: values + client + 1 for name, values in SENT.items()})
        extras = to_record({"bank": np.ones((2, 2), np.float32)})
        return RecordDict({ARRAYS: arrays, METRICS: metrics, EXTRAS: extras, STATE: ConfigRecord({"version": 1})})
    if phase == "prepare":
        return RecordDict({METRICS: metrics, EXTRAS: to_record({"mean": np.ones(3, np.float32)})})
    sums = to_record({"hits": np.full(2, client), "loss": np.asarray(0.5)})
    return RecordDict({SUMS: sums, **({METRICS: metrics} if phase == "evaluate" else {})})


class Clients:
    """The client app of all three.

    Args:
        spoil: changes the reply of client 1.
    """

    def __init__(self, spoil: Spoil | None) -> None:
        self.spoil = spoil

    def __call__(self) -> ClientApp:
        app = ClientApp()

        def answer(message: Message, context: Context) -> Message:
            client = int(context.node_config["partition-id"])
            reply = Message(honest(client, message.metadata.message_type.rpartition(".")[2]), reply_to=message)
            if client == 1 and self.spoil is not None:
                self.spoil(reply)
            return reply

        app.train()(answer)
        app.evaluate()(answer)
        for name in ("prepare", "probe"):
            app.query(name)(answer)

        @app.query("profile")
        def profile(message: Message, context: Context) -> Message:
            of = stated(int(context.node_config["partition-id"]))
            facts: dict[str, Any] = {
                "client": of.client,
                "name": of.name,
                "train": of.train,
                "test": of.test,
                "unseen": False,
            }
            facts |= {"columns": json.dumps(of.columns), "classes": [], "vocabulary": [], "clients": CLIENTS}
            return Message(RecordDict({CONFIG: ConfigRecord(facts)}), reply_to=message)

        return app


def stated(client: int) -> Profile:
    return Profile(client, f"site{client}", EXAMPLES, TESTS, {"x": ("float32", (2,))}, (), CLIENTS)


class Nodes(RemoteGrid):
    """The three clients as nodes: their arrays come as bytes."""

    def __init__(self, clients: Clients) -> None:
        self._app, self._replies, self._ids = clients(), list[Message](), itertools.count(1)

    def get_node_ids(self) -> Iterable[int]:
        return [1000 + client for client in range(CLIENTS)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
            node = message.metadata.dst_node_id
            reply = self._app(message, Context(1, node, {"partition-id": node - 1000}, RecordDict(), {}))
            for record in reply.content.values() if reply.has_content() else ():
                if isinstance(record, ArrayRecord):
                    for name, array in list(record.items()):
                        record[name] = Array(array.dtype, tuple(array.shape), array.stype, array.data)
            self._replies.append(reply)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted, found = set(message_ids), self._replies
        self._replies = [reply for reply in found if reply.metadata.reply_to_message_id not in wanted]
        return [reply for reply in found if reply.metadata.reply_to_message_id in wanted]


class Federation:
    """The server's part that reads answers.

    Args:
        where: ``simulation`` or ``deployment``.
        policy: ``stop`` or ``skip``.
        spoil: changes the reply of client 1.
        training: changes what a round of training expects.
    """

    def __init__(self, where: str, policy: str, spoil: Spoil | None = None, **training: Any) -> None:
        set_task_identity()
        clients = Clients(spoil)
        grid: Grid = InlineGrid(Simulation(clients, CLIENTS)) if where == "simulation" else Nodes(clients)
        self.config = FederationConfig(on_client_error=policy, reply_limit=1, timeout=5)  # type: ignore[arg-type]  # text
        self.left_out: list[tuple[str, str, float]] = []
        self.warnings: list[str] = []
        self.directory = ClientDirectory(grid, CLIENTS, 5, stated)
        self.directory.open()
        tally = SimpleNamespace(
            names=lambda of: tuple(f"site{client}" for client in of),
            tell=lambda round, *found: self.left_out.extend((left.what, left.why, left.count) for left in found),
        )
        tracker = SimpleNamespace(emit=lambda event, **fields: self.warnings.append(fields.get("message", "")))
        self.delivery = Delivery(
            grid, self.directory, SharedTensors(), {}, self.config, cast(Tracker, tracker), cast(Tally, tally)
        )
        self.strategy = FedAvg()
        told = {"groups": {"w": "model", "b": "model"}, "chain": make_chain([]), "summed": where == "simulation"}
        self.training = Training(**{**told, **training})

    def sent(self) -> Composition:
        """A round of training as it goes out."""
        cohort = Cohort(tuple(map(self.directory.node, range(CLIENTS))), (EXAMPLES,) * CLIENTS)
        return self.strategy.compose(TrainingRound(2, cohort, CLIENTS, dict.fromkeys(SENT, "examples")), SENT)

    def train(self) -> tuple[list[int], dict[str, np.ndarray]]:
        """Who has trained, and the new arrays."""
        sent = self.sent()
        delivered = self.delivery.carry(sent.messages, Instructions(2, 3), "train", self.training)
        new = self.strategy.combine(sent, delivered.replies)
        return self._clients(delivered.answers), dict(new or {})

    def ask(self, phase: str) -> list[int]:
        """Who has answered in a phase in which nothing is trained."""
        kind = phase if phase == "evaluate" else f"query.{phase}"
        messages = [Message(RecordDict(), self.directory.node(client), kind) for client in range(CLIENTS)]
        return self._clients(self.delivery.carry(messages, Instructions(2, 3), phase).answers)

    def _clients(self, answers: Iterable[Message]) -> list[int]:
        return [self.directory.client(reply.metadata.src_node_id) for reply in answers]
