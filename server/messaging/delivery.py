"""Delivery of messages to clients.

Instructions and missing tensors are added to the messages, replies are checked, and failures are handled as configured.
Clients that have lost a shared tensor get their message again, with the tensor.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedlab.config import FederationConfig
from fedlab.errors import ClientError, FedLabError
from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import (
    EXTRAS,
    INSTRUCTIONS,
    MISSING,
    STATE,
    UNUSABLE,
    config_record,
    required,
    to_record,
)
from fedlab.server.messaging.asked import Asked, Delivered, Part
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.inspection import Expected, Training, printable, reason_of
from fedlab.server.messaging.odd import odd_replies
from fedlab.server.messaging.presence import Presence
from fedlab.server.messaging.shared import SharedTensors
from fedlab.server.messaging.transport import send_and_receive
from fedlab.server.tally import TRAININGS, Tally
from fedlab.tracking import Tracker
from fedlab.tracking.left_out import LeftOut

log = logging.getLogger(__name__)

Judge = Callable[[Sequence[Message]], Mapping[int, str]]
"""Finds, among all answers of a phase, those that cannot be used, and says why, by position."""

_WORK = {
    "prepare": "answers to the query before round 1",
    "train": TRAININGS,
    "evaluate": "evaluations of clients",
    "probe": "probes of clients' features",
}
_SKIP = "(federation.on_client_error: skip)"
_FAILED = "the client failed"
_UNUSABLE = "what the client sent cannot be used"
_LOST = "its node was lost before it answered"
_SILENT = "the client did not answer within federation.timeout"
_AWAY = "its node was not connected"


class Delivery:
    """Sends the messages of a phase and collects the replies.

    Args:
        grid: the Flower grid that reaches the clients.
        directory: maps client ids to node ids.
        shared: the server's shared tensors.
        versions: version of the state of each client of a deployment, which replies change. Empty in a simulation.
        federation: the configuration's section, which says how failures are handled and how long to wait.
        tracker: receives a warning for each kind of failure that does not end the run.
        tally: counts these failures.
    """

    def __init__(
        self,
        grid: Grid,
        directory: ClientDirectory,
        shared: SharedTensors,
        versions: MutableMapping[int, int],
        federation: FederationConfig,
        tracker: Tracker,
        tally: Tally,
    ) -> None:
        self._grid, self._directory, self._shared, self._versions = grid, directory, shared, versions
        self._federation, self._tracker, self._tally = federation, tracker, tally
        self._skips = federation.on_client_error == "skip"
        self.presence = Presence(directory, federation, tracker)
        self._told: set[tuple[str, str]] = set()

    def carry(
        self,
        messages: Sequence[Message],
        instructions: Instructions,
        phase: str,
        training: Training | None = None,
        judge: Judge | None = None,
    ) -> Delivered:
        """Add the instructions and the tensors that clients lack to the messages, send them and collect the replies.

        A client that replies that it lacks a shared tensor is sent its message once more, with the tensor. In a
        deployment, a client that is not connected is waited for, or with ``federation.on_client_error: skip`` left
        out. If fewer clients have answered than are needed, the others are sent their messages once more.

        Args:
            messages: one message for each client, without instructions. They are changed.
            instructions: the instructions of this phase.
            phase: ``prepare``, ``train``, ``evaluate`` or ``probe``, for error messages and counts.
            training: what a round of training expects of the replies; None in the other phases.
            judge: finds further replies that cannot be used, given all answers.

        Raises:
            ClientError: a client failed and ``federation.on_client_error`` is ``stop``.
            MachineError: too few clients were connected within ``federation.timeout``.
            FedLabError: clients did not answer within ``federation.timeout`` and ``federation.on_client_error`` is
                ``stop``, or fewer clients answered than are needed.
        """
        (delivered,) = self.carry_parts([Part(messages, instructions, training)], phase, judge)
        return delivered

    def carry_parts(self, parts: Sequence[Part], phase: str, judge: Judge | None = None) -> list[Delivered]:
        """The same for messages with different instructions, which make one phase of one round together.

        Args:
            parts: the messages. No client is in two of them.
            phase: as in `carry`.
            judge: as in `carry`.

        Returns:
            What was delivered, by part. A part may be without answers if others have enough of them.

        Raises:
            ClientError, MachineError, FedLabError: as in `carry`.
        """
        every = [self._asked(part, phase) for part in parts]
        clients = [client for asked in every for client in asked.messages]
        told = (asked.instructions for asked in every)
        round = max((one.round if one.saved is None else one.saved for one in told), default=0)
        needed = self._needed(phase, len(clients))
        here = set(self.presence.wait(clients, needed, round))
        for asked in every:
            asked.failures |= dict.fromkeys(asked.messages.keys() - here, (_AWAY, ""))
            self._ask(asked, [client for client in asked.messages if client in here])
        self._refuse_odd(every, judge)
        answered = sum(len(asked.delivered.answers) for asked in every)
        if self._directory.deployed and answered < needed:
            lacking = sorted(client for asked in every for client in asked.failures)
            here = set(self.presence.wait(lacking, needed - answered, round))
            for asked in every:
                self._ask(asked, [client for client in lacking if client in here and client in asked.messages])
            self._refuse_odd(every, judge)
        self._settle(every, phase, round, needed)
        return [asked.delivered for asked in every]

    def _asked(self, part: Part, phase: str) -> Asked:
        by_client: dict[int, Message] = {}
        for message in part.messages:
            node = message.metadata.dst_node_id
            client = self._directory.client(node)
            if client < 0 or client in by_client:
                problem = "a second message to" if client in by_client else "a message to the unknown"
                raise FedLabError(
                    f"the strategy gave {problem} node {node} in round {part.instructions.round}, phase {phase}: "
                    "every client is sent one message"
                )
            by_client[client] = message
        return Asked(by_client, part.instructions, phase, self._expected(phase, list(by_client), part.training))

    def _expected(self, phase: str, clients: Sequence[int], training: Training | None) -> Expected:
        profiles = self._directory.profiles(clients) if phase != "probe" else []
        counted = {of.client: of.test if phase == "evaluate" else of.train for of in profiles}
        return Expected(phase, counted, self._federation.reply_limit * 2**20, training)

    def _needed(self, phase: str, count: int) -> int:
        """How many of so many clients have to answer."""
        if not self._skips:
            return count
        return min(self._federation.min_clients if phase in ("prepare", "train") else 1, count)

    def _ask(self, asked: Asked, clients: Sequence[int]) -> None:
        """Send the clients their messages, and those that lack something once more."""
        lacking = self._carry_once(asked, clients)
        if lacking:
            for client, reply in lacking.items():
                self._provide(client, reply, asked)
            for client in self._carry_once(asked, list(lacking)):
                self._fail(asked, client, _FAILED, "the client lacks what it was just sent")

    def _provide(self, client: int, reply: Message, asked: Asked) -> None:
        """Take note of what a client has lost.

        Raises:
            ClientError: it has lost its state, which changes the result, and clients must not be skipped.
        """
        missing = required(config_record, reply.content, MISSING)
        if "state" not in missing:
            self._shared.forget(client)
            return
        what = f"the node has lost the state of its client (version {self._versions.get(client)})"
        if not self._skips:
            raise self._error(asked, client, f"{what}: bring it back, or let it start anew with on_client_error: skip")
        self._versions.pop(client, None)
        why = f"the node has lost it, and the client starts anew {_SKIP}"
        names = self._tally.names([client])
        self._tally.tell(asked.instructions.round, LeftOut("states of clients", 1, why, examples=names))

    def _carry_once(self, asked: Asked, clients: Sequence[int]) -> dict[int, Message]:
        """Send clients their messages once.

        Returns:
            The replies of the clients that lack something for their work.
        """
        messages = [asked.message(client, self._directory.node(client)) for client in clients]
        asked.delivered.sent += self._complete(messages, asked.instructions)
        replies = send_and_receive(self._grid, messages, self._federation.timeout, asked.expected)
        asked.delivered.served.update(clients)
        return self._accept(asked, messages, replies)

    def _complete(self, messages: Iterable[Message], instructions: Instructions) -> Counter[tuple[int, str]]:
        """Add the instructions, and the shared tensors that clients lack.

        Messages that had the same content object, and whose clients lack the same tensors and go on from the same
        version of their state, share one new content object, which the engine sends once.

        Returns:
            Number of times that each client is sent each tensor.
        """
        records: dict[int | None, ConfigRecord] = {}
        # the original contents stay referenced, because their ids are used as keys
        todo = [
            (message, message.content, client, self._shared.outdated(client, instructions.shared))
            for message in messages
            for client in [self._directory.client(message.metadata.dst_node_id)]
        ]
        extras: dict[tuple[str, ...], ArrayRecord] = {}
        contents: dict[tuple[int, tuple[str, ...], int | None], RecordDict] = {}
        for message, original, client, names in todo:
            kept = self._versions.get(client, -1) if self._directory.deployed else None
            key = (id(original), names, kept)
            if key not in contents:
                if kept not in records:
                    records[kept] = ConfigRecord({"instructions": replace(instructions, kept=kept).to_json()})
                contents[key] = RecordDict({**original, INSTRUCTIONS: records[kept]})
                if names:
                    if names not in extras:
                        extras[names] = to_record({name: self._shared[name] for name in names})
                    contents[key][EXTRAS] = extras[names]
            message.content = contents[key]
        return Counter((client, name) for _, _, client, names in todo for name in names)

    def _accept(self, asked: Asked, messages: Sequence[Message], replies: Sequence[Message]) -> dict[int, Message]:
        """Take in the replies without errors, in the order of client ids. Failures end the run or are noted."""
        # the SuperLink replies in place of a lost node, so the client is found by the message that is replied to
        waiting = {
            message.metadata.message_id: self._directory.client(message.metadata.dst_node_id) for message in messages
        }
        answered = dict[int, Message]()
        for reply in replies:  # only the first reply to a message counts
            client = waiting.pop(reply.metadata.reply_to_message_id, None)
            if client is not None:
                answered[client] = reply
        lacking = dict[int, Message]()
        accepted = list[Message]()
        for client, reply in sorted(answered.items()):
            kind, reason = self._problem(asked, client, reply)
            if reason:
                self._fail(asked, client, kind, reason)
                continue
            accepted.append(reply)
            asked.failures.pop(client, None)
            if MISSING in reply.content:
                lacking[client] = reply
        if waiting and not self._skips:
            raise FedLabError(
                f"{len(waiting)} of {len(messages)} clients did not answer in round {asked.instructions.round} "
                f"({asked.phase}) within federation.timeout = {self._federation.timeout} s"
                + (f": {', '.join(self._tally.names(waiting.values()))}" if self._directory.deployed else "")
            )
        asked.failures |= dict.fromkeys(waiting.values(), (_SILENT, ""))
        asked.delivered.replies += accepted
        asked.delivered.replies.sort(key=lambda reply: self._directory.client(reply.metadata.src_node_id))
        return lacking

    def _problem(self, asked: Asked, client: int, reply: Message) -> tuple[str, str]:
        """What is wrong with a reply, first in the words by which it is counted; empty if it can be used."""
        if reply.has_error():
            kinds = {ErrorCode.NODE_UNAVAILABLE: _LOST, UNUSABLE: _UNUSABLE}
            return kinds.get(reply.error.code, _FAILED), printable(
                reply.error.reason or ""
            ) or f"code {reply.error.code}"
        if not self._directory.deployed:  # the engine has checked it
            return "", ""
        try:
            if self._directory.client(reply.metadata.src_node_id) != client:
                raise FedLabError("the reply says that it comes from another node than the one that was asked")
            asked.expected(client, asked.content(client), reply)
        except Exception as problem:  # whatever a client has sent, it must not end a run that can go on without it
            log.debug("the reply of client %d cannot be used", client, exc_info=True)
            return _UNUSABLE, reason_of(problem)
        return "", ""

    def _fail(self, asked: Asked, client: int, kind: str, reason: str) -> None:
        failure = self._error(asked, client, reason)
        if not self._skips:
            raise failure
        asked.failures[client] = kind, reason
        self._warn_once(failure)

    def _error(self, asked: Asked, client: int, reason: str) -> ClientError:
        name = self._directory.profile(client).name if self._directory.deployed else ""
        return ClientError(client, asked.instructions.round, asked.phase, reason, name)

    def _refuse_odd(self, every: Sequence[Asked], judge: Judge | None) -> None:
        """Take out the replies that do not fit most clients', and those that `judge` refuses.

        Raises:
            ClientError: there is one, and clients must not be skipped.
        """
        answers = [(asked, reply) for asked in every for reply in asked.delivered.answers]
        if not answers or (every[0].phase == "train" and not self._directory.deployed):
            return  # in a simulation, the engine's sum has them already
        replies = [reply for _, reply in answers]
        clients = [self._directory.client(reply.metadata.src_node_id) for reply in replies]
        names = [profile.name for profile in self._directory.profiles(clients)]
        odd = dict(odd_replies(every[0].phase, replies, names))
        if judge is not None:
            sound = [place for place in range(len(replies)) if place not in odd]
            odd |= {sound[at]: reason for at, reason in judge([replies[place] for place in sound]).items()}
        for place, reason in sorted(odd.items()):
            asked, reply = answers[place]
            self._fail(asked, clients[place], _UNUSABLE, reason)
            asked.delivered.replies = [other for other in asked.delivered.replies if other is not reply]

    def _settle(self, every: Sequence[Asked], phase: str, round: int, needed: int) -> None:
        """Count what is missing, and take note of what the clients hold now that their replies are used.

        Raises:
            FedLabError: fewer clients have answered than are needed.
        """
        failures = {client: kind for asked in every for client, (kind, _) in asked.failures.items()}
        count = sum(len(asked.messages) for asked in every)
        for kind in dict.fromkeys(failures.values()):
            clients = [client for client, of in failures.items() if of == kind]
            names = self._tally.names(clients)
            self._tally.tell(round, LeftOut(_WORK[phase], len(clients), f"{kind} {_SKIP}", count, examples=names))
        answered = sum(len(asked.delivered.answers) for asked in every)
        if not answered and count:
            raise FedLabError(f"no client answered in round {round}, phase {phase}")
        if answered < needed:
            again = ", also after a second attempt" if self._directory.deployed else ""
            raise FedLabError(
                f"{answered} of {count} clients answered in round {round}, phase {phase}{again}: "
                f"the round does not count, because federation.min_clients = {self._federation.min_clients}"
            )
        for asked in every:
            for reply in asked.delivered.answers:
                client = self._directory.client(reply.metadata.src_node_id)
                self._shared.delivered(client, asked.instructions.shared)
                state = config_record(reply.content, STATE) if self._directory.deployed else None
                if state is not None:
                    self._versions[client] = int(str(state["version"]))

    def _warn_once(self, failure: ClientError) -> None:
        """Warn with the traceback of the first failure of each kind, that is, phase and last line of the traceback."""
        kind = (failure.phase, failure.reason.strip().splitlines()[-1])
        if kind not in self._told:
            self._told.add(kind)
            self._tracker.emit("warning", message=str(failure))
