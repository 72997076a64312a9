"""Prototypes of classes: how they are computed, averaged and compared with features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean features of each class that occurs.

    Args:
        features: (n, d).
        labels: (n,) class indices.

    Returns:
        The classes (c,), ascending, and their means (c, d).
    """
    classes, members = torch.unique(labels, return_inverse=True)
    sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, members, features)
    return classes, sums / members.bincount(minlength=len(classes))[:, None]


def mean_prototypes(sent: Sequence[tuple[Tensor, Tensor]], num_classes: int) -> tuple[Tensor, Tensor]:
    """Average the clients' prototypes of each class over the clients that hold the class, with equal weights.

    Args:
        sent: of each client, its classes (c,) and its prototypes (c, d); c may differ.
        num_classes: K.

    Returns:
        The prototypes (K, d), zero for classes that no client holds, and which classes some client holds, (K,) bool.
    """
    means = sent[0][1]
    sums = torch.zeros(num_classes, means.shape[1], dtype=torch.float64, device=means.device)
    counts = torch.zeros(num_classes, dtype=torch.int64, device=means.device)
    for classes, own in sent:
        sums[classes] += own.double()
        counts[classes] += 1
    return (sums / counts.clamp(min=1)[:, None]).to(means.dtype), counts > 0


def prototype_distance(features: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Mean over the n samples and the d features of the squared distance from the prototype of the sample's class.

    A sample whose class has no prototype counts as one at distance 0, as in the authors' code.

    Args:
        features: (n, d).
        labels: (n,) class indices.
        prototypes: (K, d); no gradient flows into them.
        known: (K,) bool, the classes that have a prototype.
    """
    squared = (features.float() - prototypes[labels].detach()).square()
    return torch.where(known[labels][:, None], squared, torch.zeros_like(squared)).mean()


def nearest_prototype_logits(features: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Negative squared distances from the prototypes, (n, K), so that the nearest one has the largest logit.

    A class without a prototype gets a logit below all others by 1: an infinite one would make the loss infinite.

    Args:
        features: (n, d).
        prototypes: (K, d).
        known: (K,) bool, at least one of them true.
    """
    # computed from differences, because the faster way by products gives a sample other bits in another batch
    logits = -torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist").square()
    lowest = logits[:, known].amin(1, keepdim=True) - 1
    return torch.where(known[None], logits, lowest)
