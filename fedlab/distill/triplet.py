"""The triplet loss of metric learning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision


def batch_hard_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Batch-hard triplet loss with a soft margin: mean_i log(1 + exp(d_ap − d_an)).

    d_ap is the Euclidean distance of sample i to the farthest sample of its class, which includes itself. d_an is the
    distance to the nearest sample of another class. Features are not normalized.

    Args:
        features: (n, d).
        labels: (n,) integers, at least two classes.

    Returns:
        A scalar.

    Raises:
        ValueError: all samples are of one class.

    Source: Hermans et al. 2017, arXiv 1703.07737, Eq. 5 and section 3.2 (soft margin).
    """
    same = labels[:, None] == labels
    if bool(same.all()):
        raise ValueError("triplets need samples of at least two classes")
    with full_precision(features) as (x,):
        square = x.square().sum(1)
        squared = square[:, None] + square - 2 * x @ x.T
        # the square root has no finite gradient at 0, the distance of a sample to itself
        distance = squared.clamp(min=1e-12).sqrt()
        positive = distance.masked_fill(~same, 0.0).amax(1)
        negative = distance.masked_fill(same, torch.inf).amin(1)
        return F.softplus(positive - negative).mean()
