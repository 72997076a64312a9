"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedlab.config import Config, Section
from fedlab.protocol.messages import ALGORITHM, CONTROL
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.server.strategies.local_sgd import require_sgd
from fedlab.server.strategies.rounds import Arrays, TrainingRound, Weight


class Scaffold(AveragingStrategy):
    """SCAFFOLD with option II (Karimireddy et al. 2020, algorithm 1); clients count equally.

    x ← x + η_g · mean over S of (y_i − x); c ← c + |S|/N · mean over S of (c_i⁺ − c_i). Control variates exist for
    parameters; buffers are averaged as they are.
    """

    class Settings(Section):
        """Settings of SCAFFOLD."""

        server_lr: float = Field(default=1.0, gt=0, description="learning rate η_g of the server")

    def check(self, config: Config) -> list[str]:
        require_sgd("scaffold", config)
        return []

    def client_settings(self, round: TrainingRound) -> dict[str, float | str]:
        return {ALGORITHM: "scaffold"}

    def client_arrays(self) -> Arrays:
        return {name: values for name, values in self.memory.items() if name.startswith(CONTROL)}

    def returned(self, trained: Collection[str]) -> frozenset[str]:
        return frozenset(f"{CONTROL}{name}" for name in trained)  # those of other stages rest

    def weights(self, round: TrainingRound) -> dict[str, Weight]:
        return dict.fromkeys([*round.weight_of, *self.client_arrays()], "uniform")

    def begin(self, round: TrainingRound, current: Arrays) -> None:
        for name in round.trained & set(round.weight_of):
            self.memory.setdefault(f"{CONTROL}{name}", np.zeros_like(current[name]))

    def server_step(self, round: TrainingRound, current: Arrays, mean: Arrays, answers: Sequence[Message]) -> Arrays:
        new = {name: values for name, values in mean.items() if not name.startswith(CONTROL)}
        for name in round.trained & set(new):
            new[name] = current[name] + np.float32(self.settings.server_lr) * (new[name] - current[name])
        share = np.float32(len(answers) / round.population)
        for name in self.client_arrays():
            if name in mean:
                self.memory[name] = self.memory[name] + share * mean[name]
        return new
