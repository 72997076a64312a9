"""Ridge regression as a probe, which needs no samples on the server."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from fedlab.probes.base import SCORE, Labels, MergeableProbe, MergeableSettings, Probed, check_classes


class RidgeSettings(MergeableSettings):
    """Settings of ridge regression."""

    strength: float = Field(
        default=0.01, gt=0, description="strength of the penalty, in units of the features' mean variance"
    )


class Ridge(MergeableProbe[RidgeSettings]):
    """Ridge regression of the classes, from sums that clients send: no samples on the server are needed.

    With the features x and the classes y as one-hot vectors, clients send the number of samples n, Σ x, Σ x xᵀ, Σ y
    and Σ x yᵀ. The server adds them up and solves (S + λ (tr S / D) I) W = C, where S and C are the centered second
    moments Σ (x − x̄)(x − x̄)ᵀ and Σ (x − x̄)(y − ȳ)ᵀ. The result is that of all samples in one place, whichever client
    they lie on. The score is the accuracy of the largest output.
    """

    Settings = RidgeSettings

    def check(self, fit: Labels | None, test: Labels) -> None:
        assert fit is not None  # as `Probe.fits` says
        check_classes(fit)

    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        assert fit is not None
        classes = int(max(fit.labels.max(), test.labels.max())) + 1
        return self.values(self.count(self.solve(self.sums(fit, classes)), test))

    def sums(self, fit: Probed, num_classes: int) -> dict[str, np.ndarray]:
        x, y = fit.vectors.astype(np.float64), np.eye(num_classes)[fit.labels]
        with np.errstate(invalid="ignore"):  # `solve` sees what is not finite
            return {"n": np.array(float(len(x))), "x": x.sum(0), "xx": x.T @ x, "y": y.sum(0), "xy": x.T @ y}

    def solve(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        from scipy.linalg import solve

        if not sums:
            return {}
        n, mean, target = sums["n"], sums["x"] / sums["n"], sums["y"] / sums["n"]
        with np.errstate(invalid="ignore"):
            spread, common = sums["xx"] - n * np.outer(mean, mean), sums["xy"] - n * np.outer(mean, target)
        penalty = self.settings.strength * np.trace(spread) / len(mean)
        if not np.isfinite(penalty):
            return {"weights": np.full_like(common, np.nan), "bias": np.full_like(target, np.nan)}
        if penalty <= 0:  # all features are alike, so only the frequencies of the classes are known
            return {"weights": np.zeros_like(common), "bias": target}
        weights = solve(spread + penalty * np.eye(len(mean)), common, assume_a="pos")
        return {"weights": weights, "bias": target - mean @ weights}

    def count(self, solution: Mapping[str, np.ndarray], test: Probed) -> dict[str, np.ndarray]:
        if not solution:
            return {}
        outputs = test.vectors.astype(np.float64) @ solution["weights"] + solution["bias"]
        right = float((outputs.argmax(1) == test.labels).sum()) if np.isfinite(outputs).all() else np.nan
        return {"right": np.array(right), "samples": np.array(float(len(test)))}

    def values(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {SCORE: float(counts["right"] / counts["samples"])} if counts else {}
