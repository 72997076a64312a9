"""Federated evaluation: clients send sufficient statistics of their test samples, and the server adds them up."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from fedlab.config import Config
from fedlab.errors import ConfigError, FedLabError
from fedlab.method import Method, Task
from fedlab.metrics.classification import MOST_CLASSES, confusion_in
from fedlab.metrics.direction import AFTER_TRAINING
from fedlab.seeding import numpy_generator
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
        per_class: ``samples`` and ``correct``, which count the test samples of each class and those of them that are
            classified correctly, over the clients that may train; empty if the method measures no classification.
        confusion: those test samples by label (row) and prediction (column); empty if there are more classes than
            `fedlab.metrics.classification.MOST_CLASSES`.
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
    per_class: Mapping[str, Sequence[int]] = field(default_factory=dict)
    confusion: Sequence[Sequence[int]] = ()

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
            "per_class": self.per_class,
            "confusion": self.confusion,
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
    """Refuse what cannot be evaluated, or must not be.

    Raises:
        ConfigError: ``evaluation.clients`` with one of Flower's strategies, which choose clients by themselves; or
            ``evaluation.personalized`` with differential privacy.
    """
    evaluation = config.evaluation
    if evaluation.clients is not None and not isinstance(strategy, AveragingStrategy):
        raise ConfigError(
            "evaluation.clients",
            evaluation.clients,
            "one of FedLab's own strategies, because Flower's strategies choose the clients themselves",
            "remove it and set federation.strategy.fraction_evaluate",
        )
    if evaluation.personalized and config.privacy is not None:
        raise ConfigError(
            "evaluation.personalized",
            True,
            "false with differential privacy: a client's metrics after local training tell of its training samples, "
            "and no noise is added to them",
            "remove it or the section privacy",
        )


def merge_evaluations(
    method: Method,
    task: Task,
    held: Mapping[str, Mapping[str, np.ndarray]],
    unseen: Collection[str] = (),
    samples: Mapping[str, int] | None = None,
    values: Mapping[str, Mapping[str, float]] | None = None,
    personalized: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Evaluation:
    """Compute the metric values of every client, their mean, and the pooled values.

    Args:
        method: knows what its statistics mean.
        task: facts about the job.
        held: statistics of the clients that hold test samples, by client name.
        unseen: names of the clients held out from training, which count in neither mean nor pooled values.
        samples: test samples of the clients in `held`, by name.
        values: metric values of the clients in `held`, by name; None computes them here.
        personalized: statistics of the same clients after their own local training, by name; their pooled values are
            added under names that begin with ``personalized_``.

    Raises:
        FedLabError: statistics of one name have different shapes, so that they cannot be added up.
    """
    _refuse_other_shapes(held)
    _refuse_other_shapes(personalized or {})
    if values is None:
        values = {client: method.evaluation_values(statistics, task) for client, statistics in held.items()}
    total = _added(held, unseen)
    pooled = method.evaluation_values(total, task) if total else {}
    if adapted := _added(personalized or {}, unseen):
        pooled = {**pooled, **after_training(method.evaluation_values(adapted, task))}
    matrix = confusion_in(total, task.num_classes)
    return Evaluation(
        clients=values,
        mean=_means([of for client, of in values.items() if client not in unseen]),
        pooled=pooled,
        unseen=_means([of for client, of in values.items() if client in unseen]),
        unseen_clients=[client for client in values if client in unseen],
        samples={client: method.evaluation_count(held[client], count) for client, count in (samples or {}).items()},
        unit=method.evaluation_unit,
        per_class={} if matrix is None else {"samples": matrix.sum(1).tolist(), "correct": matrix.diagonal().tolist()},
        confusion=() if matrix is None or len(matrix) > MOST_CLASSES else matrix.tolist(),
    )


def after_training(values: Mapping[str, float]) -> dict[str, float]:
    """Metric values under the names that they have after a client's own local training."""
    return {f"{AFTER_TRAINING}{name}": value for name, value in values.items()}


def _added(held: Mapping[str, Mapping[str, np.ndarray]], unseen: Collection[str]) -> dict[str, np.ndarray]:
    """The sums of the clients' statistics, without those of unseen clients."""
    total: dict[str, np.ndarray] = {}
    for client, statistics in held.items():
        for name, own in statistics.items() if client not in unseen else ():
            total[name] = total[name] + own if name in total else own
    return total


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
