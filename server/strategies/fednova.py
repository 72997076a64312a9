"""FedNova: normalized averaging, so that clients with more local steps do not shift the objective."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedlab.config import Config, Section
from fedlab.protocol.messages import ALGORITHM, NUM_EXAMPLES, STEP_WEIGHT
from fedlab.server.messaging.replies import metrics_of
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.server.strategies.local_sgd import require_sgd
from fedlab.server.strategies.rounds import Arrays, TrainingRound


class FedNova(AveragingStrategy):
    """Normalized averaging (Wang et al. 2020, eq. 9): x ← x − τ_eff · Σ p_i d_i, d_i = (x − y_i)/‖a_i‖₁.

    ‖a_i‖₁ follows local momentum and the proximal term; τ_eff = Σ p_i ‖a_i‖₁, also with a proximal term, where the
    authors' code uses Σ p_i τ_i. Server momentum is the authors' ``gmf``.
    """

    metrics = MappingProxyType({STEP_WEIGHT: sys.float_info.max})

    class Settings(Section):
        """Settings of FedNova."""

        mu: float = Field(default=0.0, ge=0, description="weight μ of a proximal term in local training")
        server_momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of the server's update")

    def check(self, config: Config) -> list[str]:
        require_sgd("fednova", config)
        return []

    def client_settings(self, round: TrainingRound) -> dict[str, float | str]:
        return {ALGORITHM: "fednova", "proximal-mu": float(self.settings.mu)}

    def server_step(self, round: TrainingRound, current: Arrays, mean: Arrays, answers: Sequence[Message]) -> Arrays:
        steps = np.float32(self._effective_steps(answers))
        new = dict(mean)
        for name in round.trained & set(mean):
            update = steps * mean[name]
            if self.settings.server_momentum:
                key = f"momentum/{name}"
                before = self.memory.get(key, np.zeros_like(update))
                update = self.memory[key] = np.float32(self.settings.server_momentum) * before + update
            new[name] = current[name] - update
        return new

    @staticmethod
    def _effective_steps(answers: Sequence[Message]) -> float:
        """τ_eff in units of the learning rate."""
        reported = [metrics for metrics in map(metrics_of, answers) if STEP_WEIGHT in metrics]
        total = math.fsum(metrics[NUM_EXAMPLES] for metrics in reported)
        return math.fsum(metrics[NUM_EXAMPLES] * metrics[STEP_WEIGHT] for metrics in reported) / (total or 1.0)
