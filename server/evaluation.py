"""Federated evaluation: clients send sufficient statistics of their test samples, and the server adds them up."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from flwr.app import Message

from fedlab.config import Config
from fedlab.errors import ConfigError, FedLabError
from fedlab.method import Method, Task
from fedlab.protocol.messages import (
    METRICS,
    NUM_EXAMPLES,
    SUMS,
    VALIDATED,
    VALIDATION,
    array_record,
    metric_record,
    required,
    to_numpy,
)
from fedlab.seeding import numpy_generator
from fedlab.server.messaging.profiles import Profile
from fedlab.server.messaging.replies import scalars
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.tracking.basis import TEST_SAMPLES
from fedlab.tracking.left_out import LeftOut


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the server's model.

    Args:
        clients: metric values of every client that holds test samples, by client name.
        mean: unweighted means over those clients that may train.
        pooled: values of all their test samples together.
        unseen: unweighted means over the clients held out from training.
        unseen_clients: names of those.
        server: what the method measured on the server's own data.
        strategy: what the strategy's own `aggregate_evaluate` made of the replies.
        samples: how many things the values of each client stand on, by client name.
        unit: what these are, in the plural.
        server_samples: sizes of the sets that the server holds, by name, where something was measured on them.
        validation: unweighted means over the clients that may train, on their validation samples.
        validation_pooled: values of all these validation samples together.
        validation_basis: numbers of these ``clients`` and ``samples``; empty if there are no validation samples.
    """

    clients: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    pooled: Mapping[str, float]
    unseen: Mapping[str, float] = field(default_factory=dict)
    unseen_clients: Sequence[str] = ()
    server: Mapping[str, float] = field(default_factory=dict)
    strategy: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    unit: str = TEST_SAMPLES
    server_samples: Mapping[str, int] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    validation_pooled: Mapping[str, float] = field(default_factory=dict)
    validation_basis: Mapping[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing was measured anywhere."""
        return not any((*self.clients.values(), self.server, self.strategy, self.validation))

    def as_event(self) -> dict[str, Any]:
        """Fields of the ``evaluation`` event; those on validation samples only if there are any."""
        held = ("validation", "validation_pooled", "validation_basis") if self.validation_basis else ()
        return {
            "clients": self.clients,
            "mean": self.mean,
            "pooled": self.pooled,
            "unseen": self.unseen,
            "unseen_clients": self.unseen_clients,
            "server": self.server,
            "strategy": self.strategy,
            "samples": self.samples,
            "unit": self.unit,
            "server_samples": self.server_samples,
            **{name: getattr(self, name) for name in held},
        }


NOTHING = Evaluation({}, {}, {})
"""An evaluation in which nothing was measured."""


def evaluated_clients(
    wanted: float | None,
    clients: Sequence[int],
    participants: Sequence[int],
    tested: Callable[[int], bool],
    seed: int,
) -> Sequence[int]:
    """Choose the clients that are evaluated, the same ones in every evaluation.

    Args:
        wanted: a whole number of clients, a share of them as a float, or None for all.
        clients: all there are.
        participants: those that may train; of the others as large a share is taken.
        tested: whether a client holds test samples; asked of as few clients as will do.
        seed: the run's seed.
    """
    if wanted is None:
        return clients
    share = wanted if isinstance(wanted, float) else wanted / len(clients)
    trained = frozenset(participants)
    groups = [participants, [client for client in clients if client not in trained]]
    chosen: list[int] = []
    for number, group in enumerate(group for group in groups if group):
        order = numpy_generator(seed, "evaluated clients", number).permutation(len(group))
        # a product just below an integer counts as that integer
        count = max(1, math.floor(share * len(group) + 1e-9))
        chosen += islice((client for place in order if tested(client := group[place])), count)
    return sorted(chosen)


def unevaluated(config: Config, clients: int, unseen: Collection[int], tests: Callable[[int], int]) -> LeftOut | None:
    """Count the test samples of clients that ``evaluation.clients`` never evaluates; None where there are none.

    Args:
        config: the run's configuration.
        clients: how many there are.
        unseen: those that never train.
        tests: a client's number of test samples.
    """
    if config.evaluation.clients is None:
        return None
    training = [client for client in range(clients) if client not in unseen]
    wanted = config.evaluation.clients
    chosen = evaluated_clients(wanted, range(clients), training, lambda client: tests(client) > 0, config.seed)
    total, tested = sum(map(tests, range(clients))), sum(map(tests, chosen))
    why = f"evaluation.clients = {wanted} evaluates {len(chosen):,} of {clients:,} clients"
    return LeftOut("test samples", total - tested, why, total, wanted=True) if tested < total else None


def check_evaluation(config: Config, strategy: object) -> None:
    """Refuse ``evaluation.clients`` with a strategy that chooses the clients itself.

    Raises:
        ConfigError: one of Flower's strategies, which choose clients by themselves.
    """
    if config.evaluation.clients is not None and not isinstance(strategy, AveragingStrategy):
        raise ConfigError(
            "evaluation.clients",
            config.evaluation.clients,
            "one of FedLab's own strategies, because Flower's strategies choose the clients themselves",
            "remove it and set federation.strategy.fraction_evaluate",
        )


def merge_evaluations(
    method: Method,
    task: Task,
    held: Mapping[str, Mapping[str, np.ndarray]],
    unseen: Collection[str] = (),
    samples: Mapping[str, int] | None = None,
    values: Mapping[str, Mapping[str, float]] | None = None,
) -> Evaluation:
    """Compute the metric values of every client, their mean, and the pooled values.

    Args:
        method: knows what its statistics mean.
        task: facts about the job.
        held: statistics of the clients that hold test samples, by client name.
        unseen: names of the clients held out from training, which count in neither mean nor pooled values.
        samples: test samples of the clients in `held`, by name.
        values: metric values of the clients in `held`, by name; None computes them here.

    Raises:
        FedLabError: statistics of one name have different shapes, so that they cannot be added up.
    """
    _refuse_other_shapes(held)
    if values is None:
        values = {client: method.evaluation_values(statistics, task) for client, statistics in held.items()}
    total: dict[str, np.ndarray] = {}
    for client, statistics in held.items():
        for name, own in statistics.items() if client not in unseen else ():
            total[name] = total[name] + own if name in total else own
    return Evaluation(
        clients=values,
        mean=_means([of for client, of in values.items() if client not in unseen]),
        pooled=method.evaluation_values(total, task) if total else {},
        unseen=_means([of for client, of in values.items() if client in unseen]),
        unseen_clients=[client for client in values if client in unseen],
        samples={client: method.evaluation_count(held[client], count) for client, count in (samples or {}).items()},
        unit=method.evaluation_unit,
    )


def _refuse_other_shapes(held: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """NumPy would repeat the smaller of two statistics to fit the larger one, and the sum would mean nothing."""
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for client, statistics in held.items():
        for name, values in statistics.items():
            other, shape = first.setdefault(name, (client, values.shape))
            if values.shape != shape:
                raise FedLabError(
                    f"the evaluation statistic {name!r} of client {client!r} has the shape {values.shape}, "
                    f"that of client {other!r} has {shape}: Method.evaluate must return equal shapes on every client, "
                    "whatever samples it holds"
                )


@dataclass(frozen=True)
class Part:
    """A part of the clients' samples on which they evaluate.

    Args:
        done: what a client has done with these samples, for error messages.
        counted: key of the record of a reply with their number.
        summed: key of the record with the statistics.
    """

    done: str
    counted: str
    summed: str

    def count(self, reply: Message) -> int:
        """The number of samples; 0 without the record."""
        record = metric_record(reply.content, self.counted)
        return 0 if record is None else int(scalars(record).get(NUM_EXAMPLES, 0))

    def sums(self, reply: Message) -> dict[str, np.ndarray]:
        """The statistics."""
        return to_numpy(required(array_record, reply.content, self.summed))


TEST = Part("tested", METRICS, SUMS)
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
        sums = part.sums(reply)
        # what the metrics of FedLab call the samples that they have seen
        seen = [values for name, values in sums.items() if name.endswith("examples") and values.size == 1]
        if not all(0 <= values.item() <= count for values in seen):
            unread[place] = f"the sums stand for another number of samples than the client says it has {part.done}"
            continue
        try:
            found.append((reply, method.evaluation_values(sums, task)))
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
    held, samples = {}, {}
    for profile, reply in zip(profiles, replies, strict=True):
        held[profile.name], samples[profile.name] = part.sums(reply), part.count(reply)
    unseen = [profile.name for profile in profiles if profile.unseen]
    measured = {profile.name: found for profile, found in zip(profiles, values, strict=True)}
    return merge_evaluations(method, task, held, unseen, samples, measured)


def with_validation(evaluation: Evaluation, held: Evaluation) -> Evaluation:
    """The evaluation with what was measured on the validation samples of the clients that may train.

    Args:
        evaluation: on test samples.
        held: on validation samples.
    """
    counts = [count for name, count in held.samples.items() if name not in held.unseen_clients]
    basis = {"clients": len(counts), "samples": sum(counts)} if counts else {}
    return replace(evaluation, validation=held.mean, validation_pooled=held.pooled, validation_basis=basis)


def on_server(
    evaluation: Evaluation, values: Mapping[str, float], data: Mapping[str, Mapping[str, Sized]]
) -> Evaluation:
    """The evaluation with what the method measured on the server's data.

    Args:
        evaluation: of the clients.
        values: metric values.
        data: columns of the sets that the server holds, by name.
    """
    sizes = {name: len(next(iter(columns.values()), ())) for name, columns in data.items()}
    return replace(evaluation, server=values, server_samples=sizes if values else {})


def with_values(
    evaluation: Evaluation,
    clients: Mapping[str, Mapping[str, float]],
    pooled: Mapping[str, float],
    unseen: Collection[str],
) -> Evaluation:
    """The evaluation with further values of the clients.

    Args:
        evaluation: as it is without them.
        clients: the values by client name.
        pooled: values of all clients together that may train.
        unseen: names of the clients held out from training.
    """
    every = {name: {**evaluation.clients.get(name, {}), **values} for name, values in clients.items()}
    return replace(
        evaluation,
        clients={**evaluation.clients, **every},
        mean={**evaluation.mean, **_means([v for name, v in clients.items() if name not in unseen])},
        pooled={**evaluation.pooled, **pooled},
        unseen={**evaluation.unseen, **_means([v for name, v in clients.items() if name in unseen])},
        unseen_clients=list(dict.fromkeys([*evaluation.unseen_clients, *unseen])),
    )


def nothing_measured(round: int, evaluation: Evaluation, method: Method) -> str:
    """Why a round's evaluation has no value at all, in a sentence."""
    if not evaluation.clients:
        return f"the evaluation of round {round} measured nothing: no client that was evaluated has test samples"
    held = f"{sum(evaluation.samples.values()):,} {evaluation.unit} of {len(evaluation.clients):,} clients"
    return f"the evaluation of round {round} measured nothing: {method.title} found no value on {held}"


def _means(clients: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Unweighted means; a metric counts for the clients that have it."""
    return {
        metric: math.fsum(found) / len(found)
        for metric in sorted({metric for values in clients for metric in values})
        if (found := [values[metric] for values in clients if metric in values])
    }
