"""Nearest neighbors as a probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from fedlab.config import Positive
from fedlab.probes.base import SCORE, Labels, Probe, Probed, ProbeSettings, check_classes
from fedlab.probes.classifiers import mean_average_precision


class NearestNeighborsSettings(ProbeSettings):
    """Settings of nearest neighbors."""

    k: Positive = Field(default=20, description="number of neighbors; at most all samples of the set to fit on")
    temperature: float = Field(
        default=0.07, gt=0, description="temperature τ: a neighbor with cosine s counts exp(s / τ)"
    )


class NearestNeighbors(Probe[NearestNeighborsSettings]):
    """Classification by the k nearest samples, by cosine, weighted by exp(cosine / temperature).

    The score is the accuracy, or the mean average precision if a sample may have several classes.

    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4; Caron et al. 2021 (DINO), arXiv 2104.14294, use k = 20 and
    τ = 0.07.
    """

    Settings = NearestNeighborsSettings

    def check(self, fit: Labels | None, test: Labels) -> None:
        assert fit is not None  # as `Probe.fits` says
        check_classes(fit, several=True)

    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        from sklearn.neighbors import NearestNeighbors as Search

        assert fit is not None
        several = fit.labels.ndim == 2
        classes, codes = (None, fit.labels) if several else np.unique(fit.labels, return_inverse=True)
        votes = codes.astype(float) if classes is None else np.eye(len(classes))[codes]
        search = Search(n_neighbors=min(self.settings.k, len(fit)), metric="cosine").fit(fit.vectors)
        distances, nearest = search.kneighbors(test.vectors)
        # of the weights only the ratios count, so the nearest one is given 1 and nothing overflows
        weights = np.exp((distances[:, :1] - distances) / self.settings.temperature)
        scores = np.einsum("nk,nkc->nc", weights, votes[nearest]) / weights.sum(1, keepdims=True)
        if classes is None:
            return {SCORE: mean_average_precision(scores, test.labels)}
        return {SCORE: float((classes[scores.argmax(1)] == test.labels).mean())}
