"""Reading clients' replies."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from flwr.app import Message, MetricRecord
from torch import Tensor

from fedlab.protocol.messages import (
    ARRAYS,
    EXTRAS,
    METRICS,
    NUM_EXAMPLES,
    WITHHELD,
    array_record,
    config_record,
    metric_record,
    required,
    to_numpy,
)


def metrics_of(reply: Message) -> dict[str, float]:
    """A reply's scalar metrics."""
    return scalars(required(metric_record, reply.content, METRICS))


def results_of(reply: Message) -> dict[str, Tensor] | None:
    """The tensors a reply brings beside the weights, on the CPU; None where it brings none."""
    record = array_record(reply.content, EXTRAS)
    return None if record is None else {n: torch.from_numpy(v) for n, v in to_numpy(record, copy=True).items()}


def sent_names(replies: Iterable[Message]) -> set[str]:
    """Names of the arrays that at least one of the replies brings."""
    return {name for reply in replies for name in array_record(reply.content, ARRAYS) or ()}


def scalars(record: MetricRecord) -> dict[str, float]:
    """The scalars of a record."""
    return {name: float(value) for name, value in record.items() if not isinstance(value, list)}


def weighted_means(metrics: Iterable[dict[str, float]]) -> dict[str, float]:
    """Means over clients, weighted by examples; a metric counts for the clients that report it."""
    sums: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    for client in metrics:
        weight = client.get(NUM_EXAMPLES, 1.0)
        for name, value in client.items():
            if name != NUM_EXAMPLES:
                sums.setdefault(name, []).append(weight * value)
                weights.setdefault(name, []).append(weight)
    return {name: math.fsum(values) / (math.fsum(weights[name]) or 1.0) for name, values in sums.items()}


def withheld_groups(reply: Message) -> frozenset[str]:
    """Averaged groups the client did not contribute to."""
    record = config_record(reply.content, WITHHELD)
    groups = record["groups"] if record is not None else ()
    return frozenset(map(str, groups)) if isinstance(groups, list | tuple) else frozenset()


def with_tests(replies: list[Message]) -> list[Message]:
    """Replies of clients that hold test samples: a Flower strategy would divide by weights that may all be zero."""
    return [reply for reply in replies if metrics_of(reply)[NUM_EXAMPLES]]
