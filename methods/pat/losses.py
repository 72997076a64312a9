"""PAT's losses: cross-ID similarity learning (CSL) and part-guided self-distillation (PSD)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision


def cross_id_similarity(
    features: Tensor, bank: Tensor, own: Tensor, known: Tensor, neighbors: int, scale: float
) -> tuple[Tensor, Tensor]:
    """CSL: every part is drawn towards its nearest neighbors in the bank, independent of their identity.

    With d_j = ‖f_i^k − W_j^k‖² over all known rows j but the sample's own, and N the nearest K of them,
    ℓ_i^k = log Σ_j exp(−s·d_j) − log Σ_{j∈N} exp(−s·d_j), at least 0; the loss is the mean over i and k.

    Args:
        features: f, part features (n, parts, D).
        bank: W, (M, parts, D); receives no gradient.
        own: (n,), each sample's row.
        known: (M,), rows that hold something: at least one beside each sample's own.
        neighbors: K; all rows where there are fewer.
        scale: s.

    Returns:
        The loss, a scalar, and the rows of the neighbors (n, parts, min(K, rows)).

    Source: Ni et al. 2023, arXiv 2308.03322, as released (``loss/myloss.py``), with logsumexp in full precision.
    """
    with full_precision(features, bank) as (f, w):
        w = w.detach()
        squares = f.square().sum(-1)[:, :, None] + w.square().sum(-1).T
        distance = (squares - 2 * torch.einsum("npd,mpd->npm", f, w)).clamp(min=0)
        itself = own[:, None] == torch.arange(len(w), device=own.device)
        similarity = (-scale * distance).masked_fill((itself | ~known)[:, None], -torch.inf)
        count = min(neighbors, int(known.sum()) - 1)
        nearest, rows = similarity.topk(count, dim=-1)
        # rounding can leave the two sums of the same terms a hair below each other
        loss = (similarity.logsumexp(-1) - nearest.logsumexp(-1)).clamp(min=0)
        return loss.mean(), rows


def neighbor_distribution(labels: Tensor, num_classes: int) -> Tensor:
    """q (n, C): how often each identity occurs among a sample's neighbors, all parts pooled.

    Args:
        labels: identities of the neighbors, (n, parts, K) integers below C.
        num_classes: C.
    """
    pooled = labels.flatten(1)
    return F.one_hot(pooled, num_classes).sum(1) / pooled.shape[1]


def soft_targets(labels: Tensor, q: Tensor, share: float) -> Tensor:
    """PSD's targets (1 − λ)·onehot(y) + λ·q, (n, C).

    Args:
        labels: y, (n,).
        q: `neighbor_distribution`, (n, C).
        share: λ.
    """
    return (1 - share) * F.one_hot(labels, q.shape[1]) + share * q


def identity_loss(
    logits: Tensor, labels: Tensor, smoothing: float, soft: Tensor | None = None, weight: float = 0.0
) -> Tensor:
    """L_ID, cross-entropy with label smoothing; with PSD (1 − α)·L_ID + α·CE(soft targets).

    Args:
        logits: (n, C).
        labels: (n,).
        smoothing: ε.
        soft: PSD's targets (n, C), None without PSD.
        weight: α.
    """
    with full_precision(logits) as (z,):
        smooth = F.cross_entropy(z, labels, label_smoothing=smoothing)
        return smooth if soft is None else (1 - weight) * smooth + weight * F.cross_entropy(z, soft)


@torch.no_grad()
def neighbor_probability(logits: Tensor, labels: Tensor, q: Tensor) -> float:
    """Probability that the classifier gives to the neighbors' identities except the sample's own, mean over samples.

    Args:
        logits: (n, C).
        labels: (n,).
        q: `neighbor_distribution`, (n, C).
    """
    others = (q > 0) & ~F.one_hot(labels, q.shape[1]).bool()
    return float((logits.float().softmax(dim=1) * others).sum(1).mean())
