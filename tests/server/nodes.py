"""A deployment in one process: real server app, real client app, and nodes that go away, fail and come back."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run

import fedlab
from fedlab.clients import app as client_side
from fedlab.config import Config
from fedlab.engine.execution import copy_content, set_task_identity
from fedlab.protocol.messages import INSTRUCTIONS, config_record
from fedlab.protocol.runconfig import Submission, pack
from fedlab.server import app as server_side
from fedlab.server.messaging import directory, presence, transport
from fedlab.tracking import History
from tests.server.remote import Clock, RemoteGrid

LOST, LOST_AFTER, SILENT, CRASHED, TWICE = "lost", "lost after its work", "silent", "crashed", "twice"
"""What may happen to a message: the node is lost before or after its work, nothing comes, the app crashes, the reply
comes twice."""

Fate = Callable[[int, str, int, Message], str]
"""Called with client, type of message, round and the reply to be; it may change the reply."""


class KilledError(BaseException):
    """The server's process ends here, without any farewell."""


class Nodes(RemoteGrid):
    """The nodes of a deployment.

    Args:
        folder: holds a folder for each node.
        submission: the run.
        count: number of nodes.
        flower_run: Flower's id of the run.
    """

    def __init__(self, folder: Path, submission: Submission, count: int, flower_run: int) -> None:
        set_task_identity()
        self.folder, self.config, self.flower_run = folder, pack(submission), flower_run
        self.client_of = {7000 + 13 * client: client for client in reversed(range(count))}
        self.online = set(self.client_of)
        self.fate: Fate = lambda client, kind, round, reply: ""
        self.looks: Callable[[], None] = lambda: None
        """Called whenever the server asks who is connected."""
        self.sent: list[tuple[int, str, int]] = []
        """Client, type and round of every message that was sent."""
        self._contexts: dict[int, Context] = {}
        self._replies: list[Message] = []
        self._ids, self._run = itertools.count(1), Run.create_empty(flower_run)
        self.restart()

    def node(self, client: int) -> int:
        return next(node for node, of in self.client_of.items() if of == client)

    def restart(self, *clients: int) -> None:
        """Nodes, all by default, lose what their processes have in memory."""
        for client in clients or tuple(self.client_of.values()):
            self._contexts.pop(self.node(client), None)
        client_side._deployed.clear()

    def get_node_ids(self) -> Iterable[int]:
        self.looks()
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
        for message in reversed(messages):
            self._replies += self._answers(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted, found = set(message_ids), self._replies
        self._replies = [reply for reply in found if reply.metadata.reply_to_message_id not in wanted]
        return [reply for reply in found if reply.metadata.reply_to_message_id in wanted]

    def _answers(self, message: Message) -> list[Message]:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        told = config_record(message.content, INSTRUCTIONS)
        round = -1 if told is None else int(json.loads(str(told["instructions"]))["round"])
        client = self.client_of[node]
        self.sent.append((client, kind, round))
        if node not in self.online:
            return [self._from_superlink(message)]
        arrived: Message = Message(content=copy_content(message.content), metadata=copy.copy(message.metadata))  # type: ignore[call-overload]  # an overload for engines
        if self.fate(client, kind, round, arrived) == LOST:
            return [self._from_superlink(message)]
        reply = client_side.app(arrived, self._context(node))
        fate = self.fate(client, kind, round, reply)
        if fate == LOST_AFTER:
            return [self._from_superlink(message)]
        if fate == SILENT:
            return []
        if fate == CRASHED:
            return [Message(Error(ErrorCode.CLIENT_APP_CRASHED, "ClientApp stopped responding."), reply_to=message)]
        return [reply, reply] if fate == TWICE else [reply]

    def _context(self, node: int) -> Context:
        client = self.client_of[node]
        settings = {"partition-id": client, "state-dir": str(self.folder / f"node{client}")}
        fresh = Context(self.flower_run, node, settings, RecordDict(), dict(self.config))
        return self._contexts.setdefault(node, fresh)

    @staticmethod
    def _from_superlink(message: Message) -> Message:
        reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Error: Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return reply

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run


class Deployment:
    """Runs that are submitted to the same nodes and write to the same folder of runs.

    Args:
        folder: holds everything.
        monkeypatch: sets the server's folder of runs and stops the clock.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.clock, self._numbers = folder, Clock(), itertools.count(101)
        monkeypatch.setenv("FEDLAB_RUNS", str(folder / "runs"))
        for module in (directory, presence, transport):
            monkeypatch.setattr(module, "time", self.clock)

    def submitted(self, config: Config, count: int, **options: Any) -> Nodes:
        """The nodes as one run sees them; `serve` carries it out."""
        options = {"simulate_partition": True, "token": "f00d", **options}
        return Nodes(self.folder, Submission(config, **options), count, next(self._numbers))

    def serve(self, nodes: Nodes) -> fedlab.Run:
        """Run the server app, and open the run folder."""
        context = Context(nodes.flower_run, SUPERLINK_NODE_ID, {}, RecordDict(), dict(nodes.config))
        server_side.app(nodes, context)
        return self.run(nodes)

    def run(self, nodes: Nodes) -> fedlab.Run:
        """The run folder of a run, whether it has ended or not."""
        found = [
            path.parent
            for path in (self.folder / "runs").glob("*/deployment.json")
            if nodes.flower_run in json.loads(path.read_text())["flower_runs"]
        ]
        return fedlab.load(found[0])


def clients(run: fedlab.Run) -> list[list[int]]:
    return [event["clients"] for event in run.history.rounds]


def counts(run: fedlab.Run) -> dict[str, float]:
    """What rounds have left out."""
    rounds = [event for event in run.history.of("left_out") if event.get("round") is not None]
    return {f"{left.what}: {left.why}": left.count for left in History(rounds).left_out}


def count(run: fedlab.Run, words: str) -> float:
    (found,) = [value for text, value in counts(run).items() if words in text]
    return found
