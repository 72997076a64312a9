"""Delivery of messages to clients.

Instructions and missing tensors are added, failures are handled as configured, and clients that have lost a tensor are
served again.
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
from fedlab.server.tally import TRAININGS, Tally
from fedlab.tracking import Tracker
from fedlab.tracking.left_out import LeftOut

_WORK = {"prepare": "answers to the query before round 1", "train": TRAININGS, "evaluate": "evaluations of clients"}


@dataclass
class Delivered:
    """What was delivered in one phase of a round, and what came back.

    Args:
        replies: all that are no errors, by client; a sum formed by the engine may be in any of them.
        served: how often each client was sent its message.
        sent: how often each client was sent each shared tensor.
    """

    replies: list[Message] = field(default_factory=list)
    served: Counter[int] = field(default_factory=Counter)
    sent: Counter[tuple[int, str]] = field(default_factory=Counter)

    @property
    def answers(self) -> list[Message]:
        """Replies of clients that did their work."""
        return [reply for reply in self.replies if MISSING not in reply.content]


class Delivery:
    """Sends the messages of a phase and collects the replies.

    Args:
        grid: Flower grid that reaches the clients.
        directory: who is who.
        shared: tensors the server shares with clients.
        federation: what to do about failures, and how long to wait.
        tracker: is told of failures that do not end the run.
        tally: counts them.
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

        Clients that turn out to have lost a tensor are served a second time.

        Raises:
            ClientError: a client failed and ``federation.on_client_error`` is ``stop``.
            FedLabError: clients did not answer in time (and that is to stop the run), or none is left.
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
        replies = list(self._grid.send_and_receive(messages, timeout=self._federation.timeout))
        served = Counter(self._directory.client(message.metadata.dst_node_id) for message in messages)
        return Delivered(self._accepted(messages, replies, instructions.round, phase), served, sent)

    def _complete(self, messages: Iterable[Message], instructions: Instructions) -> Counter[tuple[int, str]]:
        """Add instructions and missing tensors.

        Messages with equal content share one object, which the engine sends once.
        """
        record = ConfigRecord({"instructions": instructions.to_json()})
        # the originals stay referenced while their ids serve as keys
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
        """The replies in the order of client ids. A failure ends the run or is left out, as configured."""
        sent_to = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}

        def client(reply: Message) -> int:
            # a lost node is answered for by the SuperLink, so the message tells whose reply it is
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
        """Show the traceback of each kind of failure once; all failures are counted."""
        kind = (failure.phase, failure.reason.strip().splitlines()[-1])
        if kind not in self._told:
            self._told.add(kind)
            self._tracker.emit("warning", message=str(failure))
