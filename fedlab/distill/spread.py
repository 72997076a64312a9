"""A regularizer that spreads the features of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.distill.directions import directions
from fedlab.distill.precision import full_precision


def koleo(features: Tensor) -> Tensor:
    """−mean_i log(‖z_i − z_nn(i)‖ + 10⁻⁸), where nn(i) is the most similar other sample and z = features / ‖features‖.

    It is the Kozachenko–Leonenko estimate of the entropy of the features, up to constants, with the sign of a loss. Two
    equal samples get no gradient from each other. A single sample has no neighbor: the loss is 0.

    Args:
        features: (n, d), not normalized.

    Returns:
        A scalar.

    Source: Sablayrolles et al. 2019, arXiv 1806.03198, Eq. 3; as used by Oquab et al. 2023, arXiv 2304.07193.
    """
    with full_precision(features) as (x,):
        if len(x) < 2:
            return x.sum() * 0
        z = directions(x)
        with torch.no_grad():
            nearest = (z @ z.T).fill_diagonal_(-torch.inf).argmax(1)
        distances = torch.linalg.vector_norm(z - z[nearest], dim=1)
        loss: Tensor = -(distances + 1e-8).log().mean()
        return loss
