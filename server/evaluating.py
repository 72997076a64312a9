"""The evaluation of a round: on the clients, on the server's own samples, and by probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from flwr.app import Message
from torch import Tensor, nn

from fedlab.method import Plan, Task
from fedlab.protocol.instructions import Instructions
from fedlab.server.contexts import Contexts
from fedlab.server.counted import HELD_BACK, TEST, Part, evaluation_of, readable
from fedlab.server.evaluation import NOTHING, Evaluation, evaluated_clients, on_server, with_validation
from fedlab.server.messaging.delivery import Delivery
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.replies import with_tests
from fedlab.server.probing import Probing
from fedlab.server.setup import ServerSetup
from fedlab.server.strategies.rounds import RoundStrategy
from fedlab.server.tally import Tally


class Evaluator:
    """Evaluates the server's model.

    Args:
        setup: the run.
        task: facts about the job.
        networks: the server's networks by role.
        contexts: makes the contexts of the method's hooks.
        directory: who is who.
        delivery: sends messages and collects the replies.
        strategy: of the run, as the loop uses it.
        tally: counts what could not be measured.
        participants: clients that may train.
    """

    def __init__(
        self,
        setup: ServerSetup,
        task: Task,
        networks: nn.ModuleDict,
        contexts: Contexts,
        directory: ClientDirectory,
        delivery: Delivery,
        strategy: RoundStrategy,
        tally: Tally,
        participants: Sequence[int],
    ) -> None:
        self._setup, self._config, self._method, self._task = setup, setup.config, setup.method, task
        self._contexts, self._directory, self._delivery = contexts, directory, delivery
        self._strategy, self._tally, self._participants = strategy, tally, participants
        self.probing = Probing(setup, task, networks, contexts, directory, delivery, participants)

    @cached_property
    def clients(self) -> Sequence[int]:
        """The clients of every evaluation."""
        wanted, directory = self._config.evaluation.clients, self._directory
        return evaluated_clients(wanted, directory.clients, self._participants, directory.tested, self._config.seed)

    def messages(self, round: int, arrays: Mapping[str, Tensor]) -> list[Message]:
        """The messages of an evaluation, as the strategy composes them.

        Args:
            round: after which the evaluation is.
            arrays: network state that is sent to clients.
        """
        nodes = [] if self._strategy.chooses_clients else [self._directory.node(client) for client in self.clients]
        return self._strategy.evaluate(round, arrays, nodes)

    def evaluate(
        self,
        round: int,
        plan: Plan,
        arrays: Mapping[str, Tensor],
        messages: Sequence[Message],
        instructions: Instructions,
    ) -> Evaluation:
        """The evaluation after a round.

        Args:
            round: its number.
            plan: of the round.
            arrays: network state that is sent to clients.
            messages: as `messages` made them.
            instructions: for the clients.
        """
        values: dict[Part, dict[int, Mapping[str, float]]] = {TEST: {}, HELD_BACK: {}}

        def judge(replies: Sequence[Message]) -> Mapping[int, str]:
            wrong: dict[int, str] = {}
            for part, found in values.items():
                read, unread = readable(self._method, self._task, replies, part)
                found.update({self._directory.client(reply.metadata.src_node_id): one for reply, one in read})
                wrong |= unread
            return wrong

        answers = self._delivery.carry(messages, instructions, "evaluate", judge=judge).answers
        self._tally.timings(round, "evaluate", answers)
        replies = with_tests(answers)
        own = self._strategy.evaluation(round, replies)
        evaluation = self._of(TEST, replies, values[TEST])
        evaluation = with_validation(evaluation, self._of(HELD_BACK, answers, values[HELD_BACK]))
        if self._method.overrides("server_evaluate"):
            context = self._contexts.work(round, plan)
            with self._contexts.draws(round, "evaluate"):
                evaluation = on_server(evaluation, self._method.server_evaluate(context), self._setup.data)
            self._tally.heard(context, "evaluate")
        evaluation = self._probed(evaluation, arrays, instructions)
        evaluation = replace(evaluation, strategy=own)
        self._tally.evaluation(round, evaluation, len(messages))
        return evaluation

    def _of(self, part: Part, replies: Sequence[Message], values: Mapping[int, Mapping[str, float]]) -> Evaluation:
        """The evaluation on a part of the samples, of those clients that have any."""
        found = {self._directory.client(reply.metadata.src_node_id): reply for reply in replies if part.count(reply)}
        profiles = self._directory.profiles(found)
        measured = [values[profile.client] for profile in profiles]
        return evaluation_of(self._method, self._task, profiles, list(found.values()), measured, part)

    def before(self, arrays: Mapping[str, Tensor], instructions: Instructions) -> Evaluation:
        """What probes measure before round 1, for comparison with what is learned.

        Args:
            arrays: network state that is sent to clients.
            instructions: for the clients.
        """
        return self._probed(NOTHING, arrays, instructions)

    def _probed(self, evaluation: Evaluation, arrays: Mapping[str, Tensor], instructions: Instructions) -> Evaluation:
        evaluation = self.probing.on_server(instructions.round, evaluation)
        return self.probing.on_clients(evaluation, self.clients, arrays, instructions)
