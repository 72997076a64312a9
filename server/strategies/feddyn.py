"""FedDyn: dynamic regularization, which makes the local optima agree with the global one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedlab.config import Config, Section
from fedlab.protocol.messages import ALGORITHM
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.server.strategies.local_sgd import require_sgd
from fedlab.server.strategies.rounds import Arrays, TrainingRound, Weight


class FedDyn(AveragingStrategy):
    """Dynamic regularization (Acar et al. 2021, algorithm 1); clients count equally.

    h ← h − α/N · Σ over S of (y_i − x); x ← mean over S of y_i − h/α. Buffers are averaged as they are.
    """

    class Settings(Section):
        """Settings of FedDyn."""

        alpha: float = Field(
            default=0.01,
            gt=0,
            description="weight α of the dynamic regularizer; the paper tunes it in {0.001, 0.01, 0.1}",
        )

    def check(self, config: Config) -> list[str]:
        require_sgd("feddyn", config)
        return []

    def client_settings(self, round: TrainingRound) -> dict[str, float | str]:
        return {ALGORITHM: "feddyn", "alpha": float(self.settings.alpha)}

    def weights(self, round: TrainingRound) -> dict[str, Weight]:
        return dict.fromkeys(round.weight_of, "uniform")

    def server_step(self, round: TrainingRound, current: Arrays, mean: Arrays, answers: Sequence[Message]) -> Arrays:
        alpha, share = self.settings.alpha, len(answers) / round.population
        new = dict(mean)
        for name in round.trained & set(mean):
            h = self.memory.get(name, np.zeros_like(current[name]))
            h = self.memory[name] = h - np.float32(alpha * share) * (mean[name] - current[name])
            new[name] = mean[name] - h / np.float32(alpha)
        return new
