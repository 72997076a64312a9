"""Contrastive losses: of labeled samples, and between queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.directions import directions
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
        z = directions(x)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        # a finite value in place of −inf, because a row of only −inf (n = 1) would make the gradient NaN
        similarity = (z @ z.T / temperature).masked_fill(itself, torch.finfo(z.dtype).min / 2)
        log_probability = F.log_softmax(similarity, dim=1)
        positive = ((labels[:, None] == labels) & ~itself).to(z.dtype)
        return -((positive * log_probability).sum(1) / positive.sum(1).clamp(min=1)).mean()


def info_nce(
    queries: Tensor, keys: Tensor, temperature: float, *, symmetric: bool = False, targets: Tensor | None = None
) -> Tensor:
    """InfoNCE: mean cross-entropy of each query's cosines with all keys, whose target is the query's own key.

    L = 1/n Σ_i −log [ exp(cos(q_i, k_t(i)) / T) / Σ_j exp(cos(q_i, k_j) / T) ]. A vector that is zero has no direction:
    its cosines are 0 and it receives no gradient. Gradients flow into queries and keys; detach the keys of a teacher.

    Args:
        queries: (n, d), not normalized.
        keys: (m, d), not normalized.
        temperature: T > 0.
        symmetric: also let the keys find their queries, and take the mean of both directions; for m = n.
        targets: the key t(i) of each query, (n,) integers, by default i; or the probabilities of all keys, (n, m).

    Returns:
        A scalar.

    Raises:
        ValueError: both `symmetric` and `targets`, or queries without a key of their own.

    Source: van den Oord et al. 2018, arXiv 1807.03748, Eq. 4; the symmetric form as in Radford et al. 2021,
    arXiv 2103.00020.
    """
    if symmetric and (targets is not None or len(queries) != len(keys)):
        raise ValueError("the symmetric loss takes as many keys as queries, and no targets")
    if targets is None and len(queries) > len(keys):
        raise ValueError(f"{len(queries)} queries need as many keys, not {len(keys)}, or targets")
    with full_precision(queries, keys) as (q, k):
        logits = directions(q) @ directions(k).T / temperature
        own = torch.arange(len(q), device=q.device) if targets is None else targets
        loss = F.cross_entropy(logits, own)
        return (loss + F.cross_entropy(logits.T, own)) / 2 if symmetric else loss
