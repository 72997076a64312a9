"""How far the features of clients are apart for the same class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def client_distance(features: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[int, float]:
    """For each class, distance between clients over spread within clients.

    The mean Euclidean distance between two clients' mean features of the class, over the mean, across those clients,
    of the mean distance of a sample to its own client's mean. Scaling all features changes nothing.

    Args:
        features: (n_i, d) of each client.
        labels: (n_i,) integers of each client.

    Returns:
        By class, for the classes that at least two clients hold; infinite where no client has any spread.

    Source: in numbers what Huang et al. 2023, arXiv 2303.02278, show as t-SNE plots.
    """
    ratios: dict[int, float] = {}
    for c in torch.unique(torch.cat([*labels])).tolist():
        held = [x[y == c].double() for x, y in zip(features, labels, strict=True) if (y == c).any()]
        if len(held) < 2:
            continue
        centers = [x.mean(0) for x in held]
        between = torch.stack([(a - b).norm() for a, b in itertools.combinations(centers, 2)]).mean()
        within = torch.stack([(x - center).norm(dim=1).mean() for x, center in zip(held, centers, strict=True)]).mean()
        ratios[c] = float(between / within) if within else (float("inf") if between else 0.0)
    return ratios
