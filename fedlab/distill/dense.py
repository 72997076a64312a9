"""Losses between dense feature maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision

_LEVELS = (4, 2, 1)


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of squared errors at full resolution and after pooling to 4×4, 2×2 and 1×1.

    Each level has half the weight of the one before. As in the authors' code, levels whose size is not smaller than the
    height of the map are left out, and the next level then has the weight that they would have had.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W), without gradient.

    Returns:
        A scalar.

    Source: Chen et al. 2021, arXiv 2104.09044, §3.4 (HCL); Liu et al. 2022, arXiv 2202.13393.
    """
    with full_precision(student, teacher) as (s, t):
        loss, weight, weights = F.mse_loss(s, t), 1.0, 1.0
        for level in _LEVELS:
            if level < s.shape[2]:
                weight /= 2
                weights += weight
                pooled = F.mse_loss(F.adaptive_avg_pool2d(s, level), F.adaptive_avg_pool2d(t, level))
                loss = loss + weight * pooled
        return loss / weights


def pixel_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of dense predictions: the (weighted) mean over labeled positions, or 0 if there are none.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) integers below K; a negative label marks an unlabeled position.
        weight: (K,) weight of each class; None weighs all classes equally.
    """
    labeled = labels >= 0
    with full_precision(logits) as (scores,):
        if not labeled.any():
            return scores.sum() * 0
        return F.cross_entropy(scores, torch.where(labeled, labels, -1), weight, ignore_index=-1)
