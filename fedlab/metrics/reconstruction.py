"""How well corrupted inputs are restored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

KEY = "reconstruction"


class MaskedError:
    """Mean absolute error over corrupted values, beside the mean absolute value of the clean inputs."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)

    def update(self, restored: Tensor, clean: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            restored: what was made of the corrupted inputs, of any shape.
            clean: the inputs before they were corrupted, of the same shape.
            mask: which values were corrupted, truth values of the same shape.
        """
        errors = (restored - clean).abs()[mask].double()
        self._sums += [float(errors.sum()), errors.numel(), float(clean.abs().double().sum()), clean.numel()]

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``reconstruction`` (4,) float64, two sums, each followed by its count."""
        return {KEY: self._sums.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self._sums = self._sums + state[KEY]

    def compute(self) -> dict[str, float]:
        """``masked_l1``, ``mean_abs`` and their ratio ``masked_l1_ratio``; none without a corrupted value."""
        error, masked, size, count = self._sums.tolist()
        if not masked or not size:
            return {}
        l1, level = error / masked, size / count
        return {"masked_l1": l1, "mean_abs": level, "masked_l1_ratio": l1 / level}
