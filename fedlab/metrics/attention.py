"""How far attention heads look, and how much what they look at depends on where they look from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

KEY = "attention"


def patch_attention(query: Tensor, key: Tensor) -> Tensor:
    """Attention weights softmax(Q Kᵀ / √d) of a block among patches alone, each row with the sum 1.

    Args:
        query: queries of the class token and the patches, (n, heads, 1 + N, d).
        key: keys of the same tokens.

    Returns:
        (n, heads, N, N), float32.
    """
    products = query[:, :, 1:].float() @ key[:, :, 1:].float().transpose(2, 3)
    return (products / math.sqrt(query.shape[-1])).softmax(-1)


def attention_distance(attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean distance in patches between a patch and those that it attends to, mean over the patches.

    Args:
        attention: (n, heads, N, N), whose rows have the sum 1.
        grid: rows and columns of patches, whose product is N.

    Returns:
        (n, heads).

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, Fig. 7.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side, device=attention.device) for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(attention.dtype)
    return (attention * torch.cdist(places, places)).sum(-1).mean(-1)


def mutual_information(attention: Tensor) -> Tensor:
    """Normalized mutual information of query and key, I(q; k) / √(H(q) H(k)), with p(q) = 1/N and p(k | q) = attention.

    It is 0 if all queries attend alike, and 1 if each attends to a key of its own.

    Args:
        attention: (n, heads, N, N), whose rows have the sum 1.

    Returns:
        (n, heads).

    Source: Park et al. 2023, arXiv 2305.00729, §2.
    """
    marginal = attention.mean(-2)
    of_keys = torch.special.entr(marginal).sum(-1)
    information = of_keys - torch.special.entr(attention).sum(-1).mean(-1)
    both = (math.log(attention.shape[-1]) * of_keys).clamp(min=0).sqrt()
    return torch.where(both > 0, information.clamp(min=0) / both.clamp(min=1e-12), torch.zeros_like(both))


class HeadMeans(NamedTuple):
    """Means over images.

    Args:
        distance: attention distance of every head in patches, (layers, heads).
        information: normalized mutual information of every head, (layers, heads).
    """

    distance: np.ndarray
    information: np.ndarray


class AttentionStatistics:
    """Attention distance and normalized mutual information of the heads of some layers, as sums over images.

    Args:
        layers: number of layers.
        heads: number of heads of each of them.
    """

    def __init__(self, layers: int, heads: int) -> None:
        self._sums = np.zeros((2, layers, heads))
        self._images = 0.0

    def update(self, attention: Sequence[Tensor], grid: tuple[int, int]) -> None:
        """Add a batch.

        Args:
            attention: of every layer, (n, heads, N, N), as `patch_attention` returns it.
            grid: rows and columns of patches.
        """
        found = [(attention_distance(layer, grid), mutual_information(layer)) for layer in attention]
        sums = [torch.stack([value.double().sum(0) for value in both]) for both in found]
        self._sums += torch.stack(sums, dim=1).numpy(force=True)
        self._images += len(attention[0])

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``attention`` (2, layers, heads) and ``attention_images`` (), float64."""
        return {KEY: self._sums.copy(), f"{KEY}_images": np.array(self._images)}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self._sums = self._sums + state[KEY]
        self._images += float(state[f"{KEY}_images"])

    def by_head(self) -> HeadMeans:
        """Means over the images, of every head; NaN without images."""
        means = self._sums / self._images if self._images else np.full_like(self._sums, np.nan)
        return HeadMeans(means[0], means[1])

    def compute(self) -> dict[str, float]:
        """``attention_distance`` in patches and ``nmi``, means over heads, and ``attention_spread``, the standard
        deviation of the distance over the heads of a layer, mean over layers; none without images."""
        if not self._images:
            return {}
        distance, information = self.by_head()
        return {
            "attention_distance": float(distance.mean()),
            "attention_spread": float(distance.std(axis=1).mean()),
            "nmi": float(information.mean()),
        }
