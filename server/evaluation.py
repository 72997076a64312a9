"""Federated evaluation: clients send sufficient statistics, the server adds them up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedlab.method import Method, Task


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the server's model.

    Args:
        clients: metric values of every client that holds test samples, by client name.
        mean: unweighted means over those clients.
        pooled: values of all test samples together.
        server: what the method measured on the server's own data.
        strategy: what the strategy's own `aggregate_evaluate` made of the replies.
    """

    clients: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    pooled: Mapping[str, float]
    server: Mapping[str, float] = field(default_factory=dict)
    strategy: Mapping[str, float] = field(default_factory=dict)

    def as_event(self) -> dict[str, Any]:
        """Fields of the ``evaluation`` event."""
        return {
            "clients": self.clients,
            "mean": self.mean,
            "pooled": self.pooled,
            "server": self.server,
            "strategy": self.strategy,
        }


def merge_evaluations(method: Method, task: Task, held: Mapping[str, Mapping[str, np.ndarray]]) -> Evaluation:
    """Per-client, mean and pooled values.

    Args:
        method: knows what its statistics mean.
        task: facts about the job.
        held: statistics of the clients that hold test samples, by client name.
    """
    clients = {name: method.evaluation_values(client, task) for name, client in held.items()}
    total: dict[str, np.ndarray] = {}
    for client in held.values():
        for name, values in client.items():
            total[name] = total[name] + values if name in total else values
    metrics = sorted({metric for values in clients.values() for metric in values})
    mean = {
        metric: math.fsum(found) / len(found)
        for metric in metrics
        if (found := [values[metric] for values in clients.values() if metric in values])
    }
    return Evaluation(clients, mean, method.evaluation_values(total, task) if total else {})
