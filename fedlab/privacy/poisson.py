"""Local training with Poisson sampling: sampling rate, number of batches, and noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fedlab.config import TrainingConfig
from fedlab.privacy import DPSGD
from fedlab.privacy.accountant import noise_multiplier_for


def sampling_rate(training: TrainingConfig, examples: int) -> float:
    """q such that a batch has ``training.batch_size`` examples on average, or all if there are fewer."""
    return min(1.0, training.batch_size / examples)


def local_steps(training: TrainingConfig, examples: int) -> int:
    """Steps in a client's round, independent of the draws: ``local_steps``, or ``local_epochs`` times round(1/q)."""
    if examples == 0:
        return 0
    return training.local_steps or steps_per_epoch(training, examples) * training.local_epochs


def steps_per_epoch(training: TrainingConfig, examples: int) -> int:
    """round(1/q), the steps in which every example is used once on average."""
    return round(1 / sampling_rate(training, examples))


class Calibration:
    """The noise of every client.

    Args:
        settings: of DP-SGD.
        stages: how often each form of the training section comes in a client's rounds.
    """

    def __init__(self, settings: DPSGD.Settings, stages: Mapping[TrainingConfig, int]) -> None:
        self.settings, self._stages = settings, stages
        self._found: dict[int, float] = {}

    def noise_multiplier(self, examples: int) -> float:
        """σ of a client with so many examples; with a target, ε is within it after all rounds of the run.

        Raises:
            ConfigError: no usable noise reaches the target.
        """
        s = self.settings
        if s.noise_multiplier is not None:
            return s.noise_multiplier
        assert s.target_epsilon is not None
        if examples not in self._found:
            self._found[examples] = noise_multiplier_for(s.target_epsilon, s.delta, self._planned(examples))
        return self._found[examples]

    def _planned(self, examples: int) -> Mapping[float, int]:
        steps = Counter[float]()
        for training, rounds in self._stages.items():
            steps[sampling_rate(training, examples)] += rounds * local_steps(training, examples)
        return steps
