"""A strategy of your own: a mean that leaves out the clients farthest from the others.

Run it with: python examples/custom_strategy.py
It takes the same overrides as the command line: python examples/custom_strategy.py federation.rounds=5
A configuration file names it as federation.strategy: {name: custom_strategy:CentralMean, left_out: 2}.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

import fedlab


class CentralMean(FedAvg):
    """FedAvg over the clients nearest to the coordinate-wise median of all.

    This is an ordinary Flower strategy that does not depend on FedLab. A run gives it the weights of every client.

    Args:
        left_out: number of clients that are left out in each round.
        options: arguments of Flower's FedAvg.
    """

    def __init__(self, left_out: int = 1, **options: Any) -> None:
        if left_out < 0:
            raise ValueError("left_out must not be negative")
        super().__init__(**options)
        self.left_out = left_out

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        answers = [reply for reply in replies if not reply.has_error()]
        weights = np.stack([_flat(reply) for reply in answers])
        distances = np.linalg.norm(weights - np.median(weights, axis=0), axis=1)
        nearest = np.argsort(distances, kind="stable")[: max(1, len(answers) - self.left_out)]
        return super().aggregate_train(server_round, [answers[i] for i in sorted(nearest)])


def _flat(reply: Message) -> np.ndarray:
    arrays = reply.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return np.concatenate([array.numpy().ravel() for array in arrays.values()])


if __name__ == "__main__":
    # uses the data, model and training of `fedlab run supervised`, with this strategy instead of its own
    run = fedlab.run("supervised", strategy=CentralMean(left_out=1), overrides=sys.argv[1:])
    print(f"mean accuracy {run.metrics['mean']['accuracy']:.3f}, report: {run.paths['report']}")
