"""What clients have counted on a part of their samples: read from their replies, and added up to an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from fedlab.errors import FedLabError
from fedlab.method import Method, Task
from fedlab.protocol.messages import (
    METRICS,
    NUM_EXAMPLES,
    PERSONALIZED,
    SUMS,
    VALIDATED,
    VALIDATION,
    array_record,
    metric_record,
    required,
    to_numpy,
)
from fedlab.server.evaluation import Evaluation, after_training, merge_evaluations
from fedlab.server.messaging.profiles import Profile
from fedlab.server.messaging.replies import scalars


@dataclass(frozen=True)
class Part:
    """A part of the clients' samples on which they evaluate.

    Args:
        done: what a client has done with these samples, for error messages.
        counted: key of the record of a reply with their number.
        summed: key of the record with the statistics.
        adapted: key of the record with the statistics after local training; None if they are not asked for.
    """

    done: str
    counted: str
    summed: str
    adapted: str | None = None

    def count(self, reply: Message) -> int:
        """The number of samples; 0 without the record."""
        record = metric_record(reply.content, self.counted)
        return 0 if record is None else int(scalars(record).get(NUM_EXAMPLES, 0))

    def sums(self, reply: Message) -> dict[str, np.ndarray]:
        """The statistics."""
        return to_numpy(required(array_record, reply.content, self.summed))

    def sums_after_training(self, reply: Message) -> dict[str, np.ndarray]:
        """The statistics after local training; empty without them."""
        record = None if self.adapted is None else array_record(reply.content, self.adapted)
        return {} if record is None else to_numpy(record)


TEST = Part("tested", METRICS, SUMS, PERSONALIZED)
HELD_BACK = Part("validated", VALIDATED, VALIDATION)


def readable(
    method: Method, task: Task, replies: Sequence[Message], part: Part = TEST
) -> tuple[list[tuple[Message, Mapping[str, float]]], dict[int, str]]:
    """Compute the metric values of each client that has samples.

    Args:
        method: knows what its statistics mean.
        task: facts about the job.
        replies: to an evaluation.
        part: which of the clients' samples count.

    Returns:
        The replies with their metric values, and what is wrong with those of which none can be computed, by position.
    """
    found: list[tuple[Message, Mapping[str, float]]] = []
    unread: dict[int, str] = {}
    for place, reply in enumerate(replies):
        count = part.count(reply)
        if not count:
            continue
        sums, adapted = part.sums(reply), part.sums_after_training(reply)
        # what the metrics of FedLab call the samples that they have seen
        every = [*sums.items(), *adapted.items()]
        seen = [values for name, values in every if name.endswith("examples") and values.size == 1]
        if not all(0 <= values.item() <= count for values in seen):
            unread[place] = f"the sums stand for another number of samples than the client says it has {part.done}"
            continue
        try:
            after = after_training(method.evaluation_values(adapted, task)) if adapted else {}
            found.append((reply, {**method.evaluation_values(sums, task), **after}))
        except Exception as problem:  # the sums come from elsewhere, and it is their client's fault if they do not fit
            told = f": {problem}" if isinstance(problem, FedLabError) else ""
            unread[place] = f"no metric can be computed from the sums ({type(problem).__name__}{told})"
    return found, unread


def evaluation_of(
    method: Method,
    task: Task,
    profiles: Sequence[Profile],
    replies: Sequence[Message],
    values: Sequence[Mapping[str, float]],
    part: Part = TEST,
) -> Evaluation:
    """The evaluation that follows from the clients' replies.

    Args:
        method: knows what its statistics mean.
        task: facts about the job.
        profiles: whose the replies are.
        replies: one for each profile.
        values: metric values of each.
        part: which of the clients' samples count.
    """
    held, samples, personalized = {}, {}, {}
    for profile, reply in zip(profiles, replies, strict=True):
        held[profile.name], samples[profile.name] = part.sums(reply), part.count(reply)
        if adapted := part.sums_after_training(reply):
            personalized[profile.name] = adapted
    unseen = [profile.name for profile in profiles if profile.unseen]
    measured = {profile.name: found for profile, found in zip(profiles, values, strict=True)}
    return merge_evaluations(method, task, held, unseen, samples, measured, personalized)
