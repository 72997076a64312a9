"""Local training with Poisson sampling: sampling rate, number of steps, and noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fedlab.config import TrainingConfig
from fedlab.privacy import DPSGD
from fedlab.privacy.accountant import noise_multiplier_for


def sampling_rate(training: TrainingConfig, examples: int) -> float:
    """The rate q at which a batch has ``training.batch_size`` examples on average; 1 if the client has fewer."""
    return min(1.0, training.batch_size / examples)


def local_steps(training: TrainingConfig, examples: int) -> int:
    """Number of steps in a client's round: ``local_steps``, or ``local_epochs`` times round(1/q) if that is not set.

    It does not depend on random draws. Without examples it is 0.
    """
    if examples == 0:
        return 0
    return training.local_steps or steps_per_epoch(training, examples) * training.local_epochs


def steps_per_epoch(training: TrainingConfig, examples: int) -> int:
    """round(1/q): the number of steps in which every example is used about once on average."""
    return round(1 / sampling_rate(training, examples))


class Calibration:
    """Determines the noise multiplier of every client.

    Args:
        settings: settings of DP-SGD.
        stages: number of rounds for each training section that a stage of the run uses.
    """

    def __init__(self, settings: DPSGD.Settings, stages: Mapping[TrainingConfig, int]) -> None:
        self.settings, self._stages = settings, stages
        self._found: dict[int, float] = {}

    def noise_multiplier(self, examples: int) -> float:
        """The noise multiplier σ of a client with a number of examples.

        If ``target_epsilon`` is set, σ is such that a client that trains in every round spends at most this ε.

        Raises:
            ConfigError: the target cannot be reached with a usable noise multiplier.
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
