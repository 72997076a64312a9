"""Signs that self-distillation has collapsed: targets that tell nothing of a sample, features that are all alike."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from fedlab.distill.directions import directions
from fedlab.distill.prototypes import entropy, sharpened

TELLING = 0.01
"""Least share of ln K that targets must tell about which sample they belong to."""
SPREAD = 0.25
"""Least share of the deviation at the start of training that features must keep."""


class TargetFigures(NamedTuple):
    """What a set of targets looks like.

    Args:
        target_entropy: mean entropy of a single target, over ln K.
        marginal_entropy: entropy of the mean target, over ln K.
        center_norm: ‖c‖ over √K.
    """

    target_entropy: float
    marginal_entropy: float
    center_norm: float

    @property
    def collapsed(self) -> bool:
        """Whether targets are nearly equal for all samples, or the center has left the range of cosines.

        The two entropies are then equal but for `TELLING`, be the targets uniform or all for one prototype. Figures
        that are not finite count as collapsed too.
        """
        return not (self.marginal_entropy - self.target_entropy >= TELLING and self.center_norm <= 1)


def target_figures(logits: Tensor, center: Tensor, temperature: float) -> TargetFigures:
    """The figures of the targets softmax((t − c) / τ_t).

    Args:
        logits: t, (n, K) of held-out samples, cosines with the prototypes.
        center: c, (K,).
        temperature: τ_t.
    """
    targets = sharpened(logits, center, temperature)
    size = targets.shape[1]
    return TargetFigures(
        float(entropy(targets).mean()) / math.log(size),
        float(entropy(targets.mean(0))) / math.log(size),
        float(center.norm()) / math.sqrt(size),
    )


def feature_deviation(features: Tensor) -> float:
    """√d times the mean over dimensions of the standard deviation of z = features / ‖features‖, over n.

    It is about 1 for directions that are spread evenly, and 0 if all are equal.

    Args:
        features: (n, d), not normalized.

    Source: Chen & He 2021, arXiv 2011.10566, section 4.1.
    """
    z = directions(features.detach().double())
    return float(z.std(0, correction=0).mean()) * math.sqrt(z.shape[1])


def features_collapsed(deviation: float, start: float) -> bool:
    """Whether features vary less than `SPREAD` times as much as at the start of training.

    Args:
        deviation: of the features of held-out samples, by the trained network; see `feature_deviation`.
        start: of the features of the same samples, by the network before training.
    """
    return not deviation >= SPREAD * start
