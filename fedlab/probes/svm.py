"""A linear support vector machine as a probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from fedlab.probes.base import SCORE, Labels, Probe, Probed, ProbeSettings, check_classes


class SVMSettings(ProbeSettings):
    """Settings of the support vector machine."""

    C: float = Field(default=1.0, gt=0, description="inverse strength of the L2 penalty")


class SVM(Probe[SVMSettings]):
    """Linear support vector machine, one class against all others, on L2-normalized features.

    The score is the accuracy.
    """

    Settings = SVMSettings

    def check(self, fit: Labels | None, test: Labels) -> None:
        assert fit is not None  # as `Probe.fits` says
        check_classes(fit)

    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        from sklearn.preprocessing import normalize
        from sklearn.svm import LinearSVC

        assert fit is not None
        # the solver draws the order of its coordinates; its default of 1,000 passes is too few for some features
        machine = LinearSVC(C=self.settings.C, max_iter=10_000, random_state=int(rng.integers(2**31)))
        machine.fit(normalize(fit.vectors), fit.labels)
        return {SCORE: float(machine.score(normalize(test.vectors), test.labels))}
