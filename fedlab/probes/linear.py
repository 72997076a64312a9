"""Logistic regression as a probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from fedlab.probes.base import SCORE, Labels, Probe, Probed, ProbeSettings, check_classes
from fedlab.probes.classifiers import linear_probe

_Strength = Annotated[float, Field(gt=0)]


class LinearSettings(ProbeSettings):
    """Settings of logistic regression."""

    strength: _Strength | Annotated[tuple[_Strength, ...], Field(min_length=1)] = Field(
        default=0.1,
        description="C, inverse strength of the L2 penalty; of several, the one is taken that is best on a half of the "
        "set to fit on when it was fitted to the other half",
    )


class Linear(Probe[LinearSettings]):
    """Logistic regression on standardized features.

    The score is the accuracy, or the mean average precision if a sample may have several classes. If several strengths
    are given, ``strength`` is the chosen one; it is fitted again to the whole set.
    """

    Settings = LinearSettings

    def check(self, fit: Labels | None, test: Labels) -> None:
        assert fit is not None  # as `Probe.fits` says
        check_classes(fit, several=True)

    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        assert fit is not None
        sides = (fit.vectors, fit.labels, test.vectors, test.labels)
        given = self.settings.strength
        if isinstance(given, float):
            return {SCORE: linear_probe(*sides, given)}
        first, second = _halves(fit.labels, rng)

        def on_half(strength: float) -> float:
            x, y = fit.vectors, fit.labels
            return linear_probe(x[first], y[first], x[second], y[second], strength)

        chosen = max(given, key=on_half) if len(given) > 1 else given[0]
        return {SCORE: linear_probe(*sides, chosen), "strength": chosen}


def _halves(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two random halves, in which every kind of label occurs equally often, or once more in the first."""
    _, codes = np.unique(labels, axis=0, return_inverse=True)
    order = rng.permutation(len(labels))
    order = order[np.argsort(codes.ravel()[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(codes.ravel()[order], codes.ravel()[order])
    return order[place % 2 == 0], order[place % 2 == 1]
