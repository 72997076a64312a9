"""FedDyn: dynamic regularization makes local and global optima agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedlab.config import Config, Section
from fedlab.protocol.messages import ALGORITHM
from fedlab.server.strategies.average import AveragingStrategy, Weight
from fedlab.server.strategies.local_sgd import require_sgd


class FedDyn(AveragingStrategy):
    """Dynamic regularization (Acar et al. 2021, algorithm 1); clients count equally.

    h ← h − α/N · Σ over S of (y_i − x); x ← mean over S of y_i − h/α. Buffers are averaged as they are.
    """

    class Settings(Section):
        """Settings of FedDyn."""

        alpha: float = Field(default=0.01, gt=0, description="α; the paper tunes it in {0.001, 0.01, 0.1}")

    def check(self, config: Config) -> list[str]:
        require_sgd("feddyn", config)
        return []

    def client_settings(self, server_round: int) -> dict[str, float | str]:
        return {ALGORITHM: "feddyn", "alpha": float(self.settings.alpha)}

    def weights(self) -> dict[str, Weight]:
        return dict.fromkeys(self.cohort.weight_of, "uniform")

    def server_step(
        self, current: Mapping[str, np.ndarray], mean: Mapping[str, np.ndarray], answers: Sequence[Message]
    ) -> Mapping[str, np.ndarray]:
        alpha, share = self.settings.alpha, len(answers) / self.cohort.population
        new = dict(mean)
        for name in self.cohort.trained & set(mean):
            h = self.memory.get(name, np.zeros_like(current[name]))
            h = self.memory[name] = h - np.float32(alpha * share) * (mean[name] - current[name])
            new[name] = mean[name] - h / np.float32(alpha)
        return new
