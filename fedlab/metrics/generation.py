"""How near generated images are to real ones: distances between the distributions of their features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The Fréchet distance of two sets of features, ‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½); FID for those of Inception.

    Args:
        real: features of real images (n, D), n ≥ 2.
        generated: features of generated images (m, D), m ≥ 2.

    Source: Heusel et al. 2017, arXiv 1706.08500; computed by torchmetrics.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsGiven(real.shape[1])).to(real.device)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, generated: Tensor) -> float:
    """The unbiased estimate of the squared MMD of two sets of features with the kernel (x·y / D + 1)³; KID.

    All samples are used at once, so that there are no random subsets; of the larger set, as many as of the smaller.

    Args:
        real: features of real images (n, D), n ≥ 2.
        generated: features of generated images (m, D), m ≥ 2.

    Source: Bińkowski et al. 2018, arXiv 1801.01401; computed by torchmetrics.
    """
    from torchmetrics.image.kid import poly_mmd

    count = min(len(real), len(generated))
    return float(poly_mmd(real[:count].double(), generated[:count].double()))


class _AsGiven(nn.Module):
    """What torchmetrics takes for a feature extractor, for features that have been extracted already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def exact_matches(found: Tensor, asked: Tensor) -> float:
    """Share of rows in which the things found are exactly those asked for; both (n, K) bool."""
    return float((found == asked).all(dim=1).float().mean())


def f1(found: Tensor, asked: Tensor) -> float:
    """F1 of the things found, counted over all rows: 2 TP / (2 TP + FP + FN); both (n, K) bool."""
    right = (found & asked).sum()
    return float(2 * right / torch.clamp(found.sum() + asked.sum(), min=1))
