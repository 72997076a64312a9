"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedlab.config import Config, Section
from fedlab.protocol.messages import ALGORITHM, CONTROL
from fedlab.server.strategies.average import AveragingStrategy, Weight
from fedlab.server.strategies.local_sgd import require_sgd


class Scaffold(AveragingStrategy):
    """SCAFFOLD with option II (Karimireddy et al. 2020, algorithm 1); clients count equally.

    x ← x + η_g · mean over S of (y_i − x); c ← c + |S|/N · mean over S of (c_i⁺ − c_i). Control variates exist for
    parameters; buffers are averaged as they are.
    """

    class Settings(Section):
        """Settings of SCAFFOLD."""

        server_lr: float = Field(default=1.0, gt=0, description="η_g")

    def check(self, config: Config) -> list[str]:
        require_sgd("scaffold", config)
        return []

    def client_settings(self, server_round: int) -> dict[str, float | str]:
        return {ALGORITHM: "scaffold"}

    def client_arrays(self) -> Mapping[str, np.ndarray]:
        return {name: values for name, values in self.memory.items() if name.startswith(CONTROL)}

    def weights(self) -> dict[str, Weight]:
        return dict.fromkeys([*self.cohort.weight_of, *self.client_arrays()], "uniform")

    def begin(self, current: Mapping[str, np.ndarray]) -> None:
        for name in self.cohort.trained & set(self.cohort.weight_of):
            self.memory.setdefault(f"{CONTROL}{name}", np.zeros_like(current[name]))

    def server_step(
        self, current: Mapping[str, np.ndarray], mean: Mapping[str, np.ndarray], answers: Sequence[Message]
    ) -> Mapping[str, np.ndarray]:
        new = {name: values for name, values in mean.items() if not name.startswith(CONTROL)}
        for name in self.cohort.trained & set(new):
            new[name] = current[name] + np.float32(self.settings.server_lr) * (new[name] - current[name])
        share = np.float32(len(answers) / self.cohort.population)
        for name in self.client_arrays():
            if name in mean:
                self.memory[name] = self.memory[name] + share * mean[name]
        return new
