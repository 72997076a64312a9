"""Functions that read clients' replies."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor

from fedlab.method.timing import Timings
from fedlab.protocol.messages import (
    ARRAYS,
    EXTRAS,
    METRICS,
    NUM_EXAMPLES,
    TIMING,
    WITHHELD,
    array_record,
    config_record,
    metric_record,
    required,
    to_numpy,
)


def metrics_of(reply: Message) -> dict[str, float]:
    """The scalar metrics of a reply."""
    return scalars(required(metric_record, reply.content, METRICS))


def results_of(reply: Message) -> dict[str, Tensor] | None:
    """The tensors that a reply holds beside the network state, on the CPU; None if there are none."""
    record = array_record(reply.content, EXTRAS)
    return None if record is None else {n: torch.from_numpy(v) for n, v in to_numpy(record, copy=True).items()}


def timings_of(content: RecordDict) -> Timings:
    """The wall times that a client's method has measured; what is no pair of numbers is left out."""
    record = metric_record(content, TIMING)
    return {
        name: (float(value[0]), int(value[1]))
        for name, value in ({} if record is None else record).items()
        if isinstance(value, list) and len(value) == 2
    }


def sent_names(replies: Iterable[Message]) -> set[str]:
    """Names of the arrays that are in at least one of the replies."""
    return {name for reply in replies for name in array_record(reply.content, ARRAYS) or ()}


def scalars(record: MetricRecord) -> dict[str, float]:
    """The scalars of a record."""
    return {name: float(value) for name, value in record.items() if not isinstance(value, list)}


def weighted_means(metrics: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the clients that report it, weighted by their numbers of examples.

    A client that does not report its number of examples has weight 1. If all weights of a metric are 0, its mean is 0.
    """
    sums: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    for client in metrics:
        weight = client.get(NUM_EXAMPLES, 1.0)
        for name, value in client.items():
            if name != NUM_EXAMPLES:
                sums.setdefault(name, []).append(weight * value)
                weights.setdefault(name, []).append(weight)
    return {name: math.fsum(values) / (math.fsum(weights[name]) or 1.0) for name, values in sums.items()}


def withheld_groups(content: RecordDict) -> frozenset[str]:
    """The averaged groups that the client did not send."""
    record = config_record(content, WITHHELD)
    groups = record["groups"] if record is not None else ()
    return frozenset(map(str, groups)) if isinstance(groups, list | tuple) else frozenset()


def with_tests(replies: list[Message]) -> list[Message]:
    """The replies of clients that have test samples, because Flower's strategies fail if all weights are 0."""
    return [reply for reply in replies if metrics_of(reply)[NUM_EXAMPLES]]
