"""The loss of supervised contrastive learning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss, in which each sample of a set is compared with all others.

    With z = features / ‖features‖ and P(i) = {p ≠ i : y_p = y_i},
    L = 1/n Σ_i −1/|P(i)| Σ_{p∈P(i)} log [ exp(z_i·z_p / T) / Σ_{a≠i} exp(z_i·z_a / T) ].
    A sample i for which P(i) is empty adds 0 and still counts in n. A feature vector that is zero has no direction: its
    z is zero too, and it receives no gradient.

    Args:
        features: (n, d), not normalized.
        labels: (n,) integers.
        temperature: T > 0.

    Returns:
        A scalar.

    Source: Khosla et al. 2020, arXiv 2004.11362, Eq. 2 (L_out) with one view per sample and without its factor
    T / T_base; as used by Huang et al. 2023, arXiv 2303.02278, Eq. 4.
    """
    with full_precision(features) as (x,):
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        z = x / norm.masked_fill(norm == 0, torch.inf)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        # a finite value in place of −inf, because a row of only −inf (n = 1) would make the gradient NaN
        similarity = (z @ z.T / temperature).masked_fill(itself, torch.finfo(z.dtype).min / 2)
        log_probability = F.log_softmax(similarity, dim=1)
        positive = ((labels[:, None] == labels) & ~itself).to(z.dtype)
        return -((positive * log_probability).sum(1) / positive.sum(1).clamp(min=1)).mean()
