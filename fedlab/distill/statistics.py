"""First and second moments of the pixels of each class, from which virtual images are initialized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ClassStatistics(NamedTuple):
    """Moments per class and channel.

    Args:
        mean: (K, C), 0 for absent classes.
        std: (K, C), population standard deviation, 0 for absent classes.
        present: (K,) bool, whether there are samples of the class.
    """

    mean: Tensor
    std: Tensor
    present: Tensor


def class_statistics(images: Tensor, labels: Tensor, num_classes: int, legacy: bool = False) -> ClassStatistics:
    """Mean and standard deviation over all pixels of a class, per channel.

    Args:
        images: (n, C, H, W), normalized.
        labels: (n,) integers below `num_classes`.
        num_classes: K.
        legacy: divide the sums of a class by the number of pixels of all classes, as the authors' code does. If p is
            the share of the class, the mean is then p·μ and the second moment p·E[x²].

    Source: Huang et al. 2023, arXiv 2303.02278, initialization. Sums are accumulated in float64.
    """
    present = torch.bincount(labels, minlength=num_classes) > 0
    mean = torch.zeros(num_classes, images.shape[1], dtype=torch.float64, device=images.device)
    std = torch.zeros_like(mean)
    for c in present.nonzero().flatten().tolist():
        pixels = images[labels == c].double()
        variance, mu = torch.var_mean(pixels, dim=(0, 2, 3), correction=0)
        if legacy:
            share = len(pixels) / len(images)
            variance, mu = share * variance + share * (1 - share) * mu.square(), share * mu
        mean[c], std[c] = mu, variance.sqrt()
    return ClassStatistics(mean.float(), std.float(), present)


def average_statistics(statistics: Sequence[tuple[Tensor, Tensor, Tensor]]) -> ClassStatistics:
    """Average the statistics of all clients: for each class, the plain means of μ and σ over the clients that have it.

    Args:
        statistics: (mean, std, present) of each client; at least one.

    Source: Huang et al. 2023, arXiv 2303.02278; the standard deviations are averaged, not the variances.
    """
    means, stds, present = (torch.stack(column) for column in zip(*statistics, strict=True))
    weights = present.double() / present.double().sum(0).clamp(min=1)
    mean, std = ((weights[:, :, None] * values.double()).sum(0).float() for values in (means, stds))
    return ClassStatistics(mean, std, present.any(0))
