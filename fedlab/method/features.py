"""Features of samples, as a method computes them for probes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What a network makes of n samples.

    Args:
        vectors: one vector for each sample, (n, D).
        tokens: the vectors of places in each sample, such as the patches of an image, row by row, (n, T, D); None if
            the network has no such vectors.
        grid: rows and columns of these places, whose product is T; None if they form no grid.
    """

    vectors: Tensor
    tokens: Tensor | None = None
    grid: tuple[int, int] | None = None
