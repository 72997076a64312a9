"""Delivery of messages to clients.

Instructions and missing tensors are added to the messages, and failures are handled as configured. Clients that have
lost a shared tensor get their message again, with the tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedlab.config import FederationConfig
from fedlab.errors import ClientError, FedLabError
from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import EXTRAS, INSTRUCTIONS, MISSING, to_record
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.shared import SharedTensors
from fedlab.server.messaging.transport import send_and_receive
from fedlab.server.tally import TRAININGS, Tally
from fedlab.tracking import Tracker
from fedlab.tracking.left_out import LeftOut

_WORK = {
    "prepare": "answers to the query before round 1",
    "train": TRAININGS,
    "evaluate": "evaluations of clients",
    "probe": "probes of clients' features",
}


@dataclass
class Delivered:
    """What was delivered in one phase of a round, and the replies to it.

    Args:
        replies: all replies except errors, in the order of client ids. If the engine has formed a sum, it is in one of
            them.
        served: number of times that each client was sent its message.
        sent: number of times that each client was sent each shared tensor.
    """

    replies: list[Message] = field(default_factory=list)
    served: Counter[int] = field(default_factory=Counter)
    sent: Counter[tuple[int, str]] = field(default_factory=Counter)

    @property
    def answers(self) -> list[Message]:
        """The replies of the clients that did their work."""
        return [reply for reply in self.replies if MISSING not in reply.content]


class Delivery:
    """Sends the messages of a phase and collects the replies.

    Args:
        grid: the Flower grid that reaches the clients.
        directory: maps client ids to node ids.
        shared: the server's shared tensors.
        federation: the configuration's section, which says how failures are handled and how long to wait.
        tracker: receives a warning for each kind of failure that does not end the run.
        tally: counts these failures.
    """

    def __init__(
        self,
        grid: Grid,
        directory: ClientDirectory,
        shared: SharedTensors,
        federation: FederationConfig,
        tracker: Tracker,
        tally: Tally,
    ) -> None:
        self._grid, self._directory, self._shared = grid, directory, shared
        self._federation, self._tracker, self._tally = federation, tracker, tally
        self._told: set[tuple[str, str]] = set()

    def carry(self, messages: Sequence[Message], instructions: Instructions, phase: str) -> Delivered:
        """Add the instructions and the tensors that clients lack to the messages, send them and collect the replies.

        A client that replies that it lacks a shared tensor is sent its message once more, with the tensor.

        Args:
            messages: one message for each client, without instructions. They are changed.
            instructions: the instructions of this phase.
            phase: ``prepare``, ``train`` or ``evaluate``, for error messages and counts.

        Raises:
            ClientError: a client failed and ``federation.on_client_error`` is ``stop``.
            FedLabError: clients did not answer within ``federation.timeout`` and ``federation.on_client_error`` is
                ``stop``, or no client answered without an error.
        """
        originals = {message.metadata.dst_node_id: message.content for message in messages}
        first = self._carry_once(messages, instructions, phase)
        lost = [reply.metadata.src_node_id for reply in first.replies if MISSING in reply.content]
        if lost:
            for node in lost:
                self._shared.forget(self._directory.client(node))
            kind = messages[0].metadata.message_type
            again = self._carry_once([Message(originals[node], node, kind) for node in lost], instructions, phase)
            first = Delivered([*first.replies, *again.replies], first.served + again.served, first.sent + again.sent)
            first.replies.sort(key=lambda reply: self._directory.client(reply.metadata.src_node_id))
        for reply in first.answers:
            self._shared.delivered(self._directory.client(reply.metadata.src_node_id), instructions.shared)
        return first

    def _carry_once(self, messages: Sequence[Message], instructions: Instructions, phase: str) -> Delivered:
        sent = self._complete(messages, instructions)
        replies = send_and_receive(self._grid, messages, self._federation.timeout)
        served = Counter(self._directory.client(message.metadata.dst_node_id) for message in messages)
        return Delivered(self._accepted(messages, replies, instructions.round, phase), served, sent)

    def _complete(self, messages: Iterable[Message], instructions: Instructions) -> Counter[tuple[int, str]]:
        """Add the instructions, and the shared tensors that clients lack.

        Messages that had the same content object and whose clients lack the same tensors share one new content object,
        which the engine sends once.

        Returns:
            Number of times that each client is sent each tensor.
        """
        record = ConfigRecord({"instructions": instructions.to_json()})
        # the original contents stay referenced, because their ids are used as keys
        todo = [
            (
                message,
                message.content,
                self._shared.outdated(self._directory.client(message.metadata.dst_node_id), instructions.shared),
            )
            for message in messages
        ]
        extras: dict[tuple[str, ...], ArrayRecord] = {}
        contents: dict[tuple[int, tuple[str, ...]], RecordDict] = {}
        for message, original, names in todo:
            key = (id(original), names)
            if key not in contents:
                contents[key] = RecordDict({**original, INSTRUCTIONS: record})
                if names:
                    if names not in extras:
                        extras[names] = to_record({name: self._shared[name] for name in names})
                    contents[key][EXTRAS] = extras[names]
            message.content = contents[key]
        return Counter(
            (self._directory.client(message.metadata.dst_node_id), name) for message, _, names in todo for name in names
        )

    def _accepted(self, messages: Sequence[Message], replies: list[Message], round: int, phase: str) -> list[Message]:
        """The replies without errors, in the order of client ids. Failures end the run or are counted."""
        sent_to = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}

        def client(reply: Message) -> int:
            # the SuperLink replies in place of a lost node, so the client is found by the message that is replied to
            return self._directory.client(sent_to.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id))

        stop, failed = self._federation.on_client_error == "stop", list[int]()
        for reply in sorted(replies, key=client):
            if reply.has_error():
                failure = ClientError(client(reply), round, phase, reply.error.reason or f"code {reply.error.code}")
                if stop:
                    raise failure
                failed.append(failure.client)
                self._warn_once(failure)
        silent = len(messages) - len(replies)
        if silent and stop:
            raise FedLabError(
                f"{silent} of {len(messages)} clients did not answer in round {round} ({phase}) "
                f"within federation.timeout = {self._federation.timeout} s"
            )
        what, skip = _WORK[phase], "(federation.on_client_error: skip)"
        names = self._tally.names(number for number in failed if number >= 0)
        self._tally.tell(
            round,
            LeftOut(what, len(failed), f"the client failed {skip}", len(messages), examples=names),
            LeftOut(what, silent, f"the client did not answer within federation.timeout {skip}", len(messages)),
        )
        accepted = sorted((reply for reply in replies if not reply.has_error()), key=client)
        if messages and not accepted:
            raise FedLabError(f"no client answered in round {round}, phase {phase}")
        return accepted

    def _warn_once(self, failure: ClientError) -> None:
        """Warn with the traceback of the first failure of each kind, that is, phase and last line of the traceback."""
        kind = (failure.phase, failure.reason.strip().splitlines()[-1])
        if kind not in self._told:
            self._told.add(kind)
            self._tracker.emit("warning", message=str(failure))
