"""How much of an attribute the nearest neighbors in a space of features share."""

from __future__ import annotations

import torch
from torch import Tensor

_NEAREST = 5


def neighbor_purity(features: Tensor, identities: Tensor, attributes: Tensor) -> tuple[float, float]:
    """How often the nearest samples of other identities have the same value of the attribute that a feature stands for.

    Args:
        features: one feature per attribute, (n, a, D), or one that stands for all of them, (n, 1, D).
        identities: (n,).
        attributes: values of each attribute, (n, a) integers.

    Returns:
        The share among the 5 nearest samples of other identities by Euclidean distance, mean over attributes, and what
        chance gives.
    """
    other = identities[:, None] != identities
    shares, chances = [], []
    for index, attribute in enumerate(attributes.T):
        feature = features[:, min(index, features.shape[1] - 1)]
        distance = torch.cdist(feature, feature).masked_fill(~other, torch.inf)
        nearest = distance.topk(min(_NEAREST, int(other.sum(1).min())), largest=False).indices
        shares.append((attribute[nearest] == attribute[:, None]).float().mean())
        chances.append(((attribute[:, None] == attribute) & other).sum() / other.sum())
    return float(torch.stack(shares).mean()), float(torch.stack(chances).mean())
