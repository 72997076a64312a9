"""A contrastive loss between the representations of several models."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.directions import directions
from fedlab.distill.precision import full_precision


def model_contrastive(z: Tensor, z_global: Tensor, z_previous: Tensor, temperature: float = 0.5) -> Tensor:
    """Model-contrastive loss: pulls representations to those of the global model and away from earlier local models'.

    ℓ = mean over samples of −log [ e^{cos(z, z_glob)/T} / (e^{cos(z, z_glob)/T} + Σ_m e^{cos(z, z_prev^m)/T}) ],
    which is exactly 0 where there are no earlier models. A representation that is zero has no direction: its
    cosines are 0 and it receives no gradient.

    Args:
        z: (n, d) of the model in training.
        z_global: (n, d) of the global model, a constant.
        z_previous: (n, M, d) of M earlier models, constants; M may be 0.
        temperature: T > 0.

    Returns:
        A scalar.

    Source: Li, He and Song 2021, arXiv 2103.16257, ℓ_con; several earlier models as in the authors' code.
    """
    with full_precision(z, z_global.detach(), z_previous.detach()) as (own, positive, negatives):
        others = directions(torch.cat([positive[:, None], negatives], dim=1))
        cosines = (others @ directions(own)[:, :, None]).squeeze(2)
        return -F.log_softmax(cosines / temperature, dim=1)[:, 0].mean()
