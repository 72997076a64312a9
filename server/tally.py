"""Counts what a run leaves out: steps not taken, replies that did not come, metrics that could not be computed.

Each kind is reported in every round in which it occurs, so that a run that ends early or is resumed still has its sums;
`fedlab.tracking.History.left_out` adds them up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Message

from fedlab.config import Config, TrainingConfig
from fedlab.data.holdings import Holdings
from fedlab.method import ServerContext
from fedlab.method.timing import Timings, added
from fedlab.protocol.effort import NO_SAMPLES, NOT_FULL, Effort
from fedlab.protocol.messages import EFFORT, config_record
from fedlab.server.evaluation import Evaluation, nothing_measured
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.replies import timings_of
from fedlab.server.setup import ServerSetup
from fedlab.server.strategies.rounds import RoundStrategy
from fedlab.server.watch import Watch
from fedlab.tracking.left_out import LeftOut

TRAININGS, STEPS = "local trainings", "training steps"
_NAMED = 10  # clients in one event
_FIX = {
    NO_SAMPLES: "give every client training samples, for example by data.partition's smallest size",
    NOT_FULL: "lower training.batch_size or set training.drop_last: false",
}


class Tally:
    """Reports to the tracker what is left out.

    Args:
        setup: the run.
        directory: who is who.
        strategy: of the run, as the loop uses it.
        watch: looks for divergence.
    """

    def __init__(self, setup: ServerSetup, directory: ClientDirectory, strategy: RoundStrategy, watch: Watch) -> None:
        self._tracker, self._directory, self._method = setup.tracker, directory, setup.method
        self._stages, self._loss = setup.components.stages, f"{type(setup.method).__name__}.loss()"
        self._strategy, self._data = strategy, setup.config.data
        self._watch = watch
        self._alarmed: set[str] = set()
        self._told = False  # that an evaluation measured nothing

    def tell(self, round: int | None, *found: LeftOut) -> None:
        """Report what was left out in a round, or in the whole run where `round` is None."""
        for left in found:
            if left.count:
                when = {} if round is None else {"round": round}
                self._tracker.emit("left_out", **when, **left.fields())

    def alarm(self, round: int, message: str) -> None:
        """Publish an alarm, the first time it occurs."""
        if message not in self._alarmed:
            self._alarmed.add(message)
            self._tracker.alarm(round, message)

    def heard(self, context: ServerContext, phase: str) -> None:
        """Publish the method's own alarms and times of its work on the server."""
        for message in context.alarms:
            self.alarm(context.round, message)
        self._time(context.round, phase, "server", context.timings, 1)

    def timings(self, round: int, phase: str, answers: Sequence[Message]) -> None:
        """Publish the times that the method has measured on the clients."""
        found = [timings for reply in answers if (timings := timings_of(reply.content))]
        self._time(round, phase, "clients", added(found), len(found))

    def _time(self, round: int, phase: str, where: str, found: Timings, participants: int) -> None:
        for name, (seconds, count) in sorted(found.items()):
            fields = {"name": name, "seconds": seconds, "count": count, "participants": participants}
            self._tracker.emit("timing", round=round, phase=phase, where=where, **fields)

    def start(self, config: Config, participants: Sequence[int]) -> None:
        """Count the training samples that every epoch leaves out, in each kind of stage."""
        rounds = config.federation.rounds
        plans = [self._method.plan(round, rounds) for round in range(1, rounds + 1)]
        stages = {self._stages.training(plan): plan for plan in plans}
        for training, plan in stages.items():
            if training.drop_last and self._method.batch_spec(plan).sampler is None:
                profiles = self._directory.profiles(participants)
                self.tell(None, dropped_rest(training, {profile.name: profile.train for profile in profiles}))

    def composed(self, round: int, messages: int, left_out: Sequence[LeftOut]) -> None:
        """Count the clients that do not take part in a round, and the rounds in which no client does.

        Args:
            round: about to begin.
            messages: that go out.
            left_out: what participation chose or planned and does not take place.
        """
        self.tell(round, *left_out)
        if not messages and self._strategy.chooses_clients:  # where samplers choose, they have given their reasons
            why = f"configure_train of the strategy {self._strategy.name} gave no messages"
            self.tell(round, LeftOut("rounds of training", 1, why, 1))
            self.alarm(round, f"no client was trained in a round although there were clients: {why}")

    def evaluation(self, round: int, evaluation: Evaluation, asked: int) -> None:
        """Count the values an evaluation lacks, and look for divergence.

        Args:
            round: after which.
            evaluation: what came of it.
            asked: messages that were sent.
        """
        if evaluation.empty and not self._told:
            self._told = True
            self._tracker.emit("warning", message=nothing_measured(round, evaluation, self._method))
        elif not asked and not evaluation.empty:
            why = f"configure_evaluate of the strategy {self._strategy.name} gave no messages"
            self.tell(round, LeftOut("evaluations on clients", 1, why, 1))
        scopes = {"mean": evaluation.mean, "pooled": evaluation.pooled, "server": evaluation.server}
        scopes |= {"validation": evaluation.validation}
        self.tell(round, *uncomputed(evaluation.clients, scopes, self._not_held(evaluation.clients)))
        for message in self._watch.see(evaluation.pooled):
            self.alarm(round, message)

    def _not_held(self, clients: Iterable[str]) -> dict[str, set[str]]:
        """By client name, the assets that some other client holds and this one does not, as far as the server knows."""
        names, assets = list(clients), {asset for held in self._data.holds.values() for asset in held}
        holdings = Holdings(self._data, names, sorted(assets))
        return {name: assets - {*holdings.of(place)} for place, name in enumerate(names)}

    def training(self, round: int, answers: Sequence[Message]) -> None:
        """Count the steps that clients did not take; an alarm where nobody took one."""
        efforts = {
            self._directory.client(reply.metadata.src_node_id): Effort.of(dict(record))
            for reply in answers
            if (record := config_record(reply.content, EFFORT)) is not None
        }
        empty, missing = defaultdict[str, list[int]](list), defaultdict[str, dict[int, int]](dict)
        for client, effort in efforts.items():
            if effort.reason and not effort.batches:
                empty[effort.reason].append(client)
            elif effort.missing:
                missing[effort.reason][client] = effort.missing
        for reason, clients in empty.items():
            why, fix = f"no batch could be drawn, as {reason}", _FIX.get(reason, "")
            self.tell(round, LeftOut(TRAININGS, len(clients), why, len(answers), fix, self.names(clients)))
        for reason, steps in missing.items():
            why = f"no further batch could be drawn, as {reason}"
            self.tell(round, LeftOut(STEPS, sum(steps.values()), why, examples=self.names(steps)))
        skipped = {client: effort for client, effort in efforts.items() if effort.skipped}
        count, drawn = (sum(getattr(e, name) for e in skipped.values()) for name in ("skipped", "batches"))
        why = f"{self._loss} returned no term for their batches"
        self.tell(round, LeftOut(STEPS, count, why, drawn, examples=self.names(skipped)))
        if answers and sum(effort.idle for effort in efforts.values()) == len(answers):
            reasons = [*empty, *([f"{self._loss} returned no term for any batch"] if skipped else [])]
            self.alarm(round, f"no client took a training step in a whole round: {'; '.join(reasons)}")

    def names(self, clients: Iterable[int]) -> tuple[str, ...]:
        """Names of the first few clients."""
        return tuple(self._directory.profile(client).name for client in sorted(clients)[:_NAMED])


def dropped_rest(training: TrainingConfig, examples: Mapping[str, int]) -> LeftOut:
    """Samples of each epoch that ``training.drop_last`` leaves out because they fill no batch.

    Args:
        training: local training in a round.
        examples: training samples of each client, by name.
    """
    rests = {name: count % training.batch_size for name, count in examples.items()} if training.drop_last else {}
    return LeftOut(
        "training samples of each epoch",
        sum(rests.values()),
        f"training.drop_last leaves out those that do not fill a batch of {training.batch_size}, other ones each time",
        sum(examples.values()),
        examples=tuple(name for name, rest in rests.items() if rest)[:_NAMED],
        wanted=True,
    )


def uncomputed(
    clients: Mapping[str, Mapping[str, Any]],
    others: Mapping[str, Mapping[str, Any]],
    not_held: Mapping[str, Collection[str]] | None = None,
) -> list[LeftOut]:
    """Count the metric values that an evaluation should have and does not have.

    Args:
        clients: metric values of every client with test samples, by its name.
        others: values that stand for no single client, by what they are: ``mean``, ``pooled``, ``server``.
        not_held: by client name, assets of the method that the client does not hold. A metric whose name contains that
            of an asset, as ``exit_4_accuracy`` does, is a metric of the asset.
    """
    wanted = {metric for values in clients.values() for metric in values}
    missing, apart = list[str](), list[str]()
    for name, values in clients.items():
        for metric in sorted(wanted - set(values)):
            of_unheld = any(f"_{asset}_" in f"_{metric}_" for asset in (not_held or {}).get(name, ()))
            (apart if of_unheld else missing).append(f"{metric} of {name}")
    infinite = [
        f"{metric} of {name}"
        for name, values in {**clients, **others}.items()
        for metric, value in values.items()
        if not math.isfinite(value)
    ]
    total = len(wanted) * len(clients)
    unable = "these clients' test samples do not allow to compute them, so that means are over the other clients"
    unheld = "they are of assets that these clients do not hold (data.holds), so that means are over those that do"
    return [
        LeftOut("metric values of clients", len(missing), unable, total, examples=tuple(missing[:_NAMED])),
        LeftOut("metric values of clients", len(apart), unheld, total, examples=tuple(apart[:_NAMED]), wanted=True),
        LeftOut("metric values", len(infinite), "they are NaN or infinite", examples=tuple(infinite[:_NAMED])),
    ]
