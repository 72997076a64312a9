"""Few-shot classification as a probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from fedlab.config import Positive
from fedlab.errors import DataError
from fedlab.probes.base import SCORE, Labels, Probe, Probed, ProbeSettings, check_classes


class FewShotSettings(ProbeSettings):
    """Settings of few-shot classification."""

    ways: int = Field(default=5, ge=2, description="classes in an episode")
    shots: Positive = Field(default=5, description="labeled samples of each class in an episode, from the set fit")
    queries: Positive = Field(default=15, description="samples of each class to classify, from the set test")
    episodes: int = Field(default=100, ge=2, description="number of episodes")


class FewShot(Probe[FewShotSettings]):
    """Few-shot classification by the nearest class mean, over many episodes.

    An episode draws classes, and labeled samples and queries of each. A query belongs to the class whose labeled
    samples have the nearest mean, by the Euclidean distance of L2-normalized features. The score is the mean accuracy
    over the episodes, ``std`` their standard deviation (with n − 1 in the denominator).

    Source: Snell et al. 2017, arXiv 1703.05175; on normalized features, Wang et al. 2019, arXiv 1911.04623.
    """

    Settings = FewShotSettings

    def check(self, fit: Labels | None, test: Labels) -> None:
        assert fit is not None  # as `Probe.fits` says
        check_classes(fit)
        s, usable = self.settings, self._usable(fit.values, test.values)
        if len(usable) < s.ways:
            raise DataError(
                f"sets {fit.name!r} and {test.name!r}",
                f"{len(usable)} classes with {s.shots} samples to fit on and {s.queries} to score on",
                f"at least {s.ways} (ways)",
                "lower ways, shots or queries, or hold out more samples",
            )

    def _usable(self, fit: np.ndarray, test: np.ndarray) -> np.ndarray:
        """The classes with enough samples in both sets."""
        (classes, known), (asked, there) = (np.unique(labels, return_counts=True) for labels in (fit, test))
        usable: np.ndarray = np.intersect1d(
            classes[known >= self.settings.shots], asked[there >= self.settings.queries]
        )
        return usable

    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        from sklearn.preprocessing import normalize

        assert fit is not None
        s, usable = self.settings, self._usable(fit.labels, test.labels)
        known, asked = normalize(fit.vectors), normalize(test.vectors)
        accuracies = []
        for _ in range(s.episodes):
            classes = rng.choice(usable, s.ways, replace=False)
            right = 0
            drawn = [
                (_of(fit.labels, label, s.shots, rng), _of(test.labels, label, s.queries, rng)) for label in classes
            ]
            means = np.stack([known[shots].mean(0) for shots, _ in drawn])
            for way, (_, queries) in enumerate(drawn):
                distances = ((asked[queries][:, None] - means) ** 2).sum(2)
                right += int((distances.argmin(1) == way).sum())
            accuracies.append(right / (s.ways * s.queries))
        return {SCORE: float(np.mean(accuracies)), "std": float(np.std(accuracies, ddof=1))}


def _of(labels: np.ndarray, label: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` random samples of a class, as indices."""
    drawn: np.ndarray = rng.choice(np.flatnonzero(labels == label), count, replace=False)
    return drawn
