"""Server optimizers on the clients' mean update Δ = mean − x, for parameters; buffers are averaged as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedlab.config import Section
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.server.strategies.rounds import Arrays, TrainingRound


class _ServerOptimizer(AveragingStrategy):
    """Base of the server optimizers."""

    def server_step(self, round: TrainingRound, current: Arrays, mean: Arrays, answers: Sequence[Message]) -> Arrays:
        new = dict(mean)
        for name in round.trained & set(mean):
            new[name] = current[name] + self.move(name, mean[name] - current[name])
        return new

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        """How far a parameter goes, given Δ."""
        return delta

    def remembered(self, kind: str, name: str, like: np.ndarray, initial: float = 0.0) -> np.ndarray:
        """A lasting array of a parameter."""
        return self.memory.get(f"{kind}/{name}", np.full_like(like, initial))


class FedAvgM(_ServerOptimizer):
    """Server momentum (Hsu et al. 2019, arXiv 1909.06335): v ← βv + Δ, x ← x + ηv."""

    class Settings(Section):
        """Settings of FedAvgM."""

        server_lr: float = Field(default=1.0, gt=0, description="learning rate η of the server")
        momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum β of the server")
        damped: bool = Field(default=False, description="use v ← βv + (1 − β)Δ, which damps the new update")

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        s = self.settings
        fresh = np.float32(1 - s.momentum if s.damped else 1.0)
        v = np.float32(s.momentum) * self.remembered("momentum", name, delta) + fresh * delta
        self.memory[f"momentum/{name}"] = v
        return np.asarray(np.float32(s.server_lr) * v)


class _Adaptive(_ServerOptimizer):
    """m ← β₁m + (1 − β₁)Δ, v by the rule, x ← x + η·m/(√v + τ) (Reddi et al. 2021, algorithm 2)."""

    class Settings(Section):
        """Settings of the adaptive server optimizers."""

        server_lr: float = Field(default=0.1, gt=0, description="learning rate η of the server")
        beta1: float = Field(default=0.9, ge=0, lt=1, description="decay rate β₁ of the first moment")
        beta2: float = Field(default=0.99, ge=0, lt=1, description="decay rate β₂ of the second moment")
        tau: float = Field(default=1e-3, gt=0, description="degree of adaptivity τ")
        initial_v: float = Field(
            default=0.0, ge=0, description="second moment v before round 1; the paper asks for at least τ²"
        )

    def move(self, name: str, delta: np.ndarray) -> np.ndarray:
        s = self.settings
        m = np.float32(s.beta1) * self.remembered("m", name, delta) + np.float32(1 - s.beta1) * delta
        v = self.second_moment(self.remembered("v", name, delta, s.initial_v), np.square(delta))
        self.memory[f"m/{name}"], self.memory[f"v/{name}"] = m, v
        return np.asarray(np.float32(s.server_lr) * m / (np.sqrt(v) + np.float32(s.tau)))

    def second_moment(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """The new v, given Δ²."""
        return np.asarray(v + square)


class FedAdagrad(_Adaptive):
    """v ← v + Δ² (Reddi et al. 2021, algorithm 2)."""

    class Settings(_Adaptive.Settings):
        """Settings of FedAdagrad."""

        beta1: float = Field(default=0.0, ge=0, lt=1, description="decay rate β₁ of the first moment")


class FedAdam(_Adaptive):
    """v ← β₂v + (1 − β₂)Δ², without bias correction (Reddi et al. 2021, algorithm 2)."""

    def second_moment(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        beta2 = self.settings.beta2
        return np.asarray(np.float32(beta2) * v + np.float32(1 - beta2) * square)


class FedYogi(_Adaptive):
    """v ← v − (1 − β₂)Δ²·sign(v − Δ²) (Reddi et al. 2021, algorithm 2)."""

    class Settings(_Adaptive.Settings):
        """Settings of FedYogi."""

        server_lr: float = Field(default=0.01, gt=0, description="learning rate η of the server")

    def second_moment(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        return np.asarray(v - np.float32(1 - self.settings.beta2) * square * np.sign(v - square))
