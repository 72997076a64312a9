"""The expected values of metrics for guessing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4096)
def chance_precision(right: int, images: int) -> float:
    """Expected average precision of a gallery in random order: (H_M + (M − H_M) · (m − 1)/(M − 1)) / M, H_M = Σ 1/k.

    The image at place k is right with probability m/M, and then (m − 1)/(M − 1) of the k − 1 before it are.

    Args:
        right: m, how many of the images are right, at least one.
        images: M.

    Source: Bestgen 2015, "Exact expected average precision of the random baseline for system evaluation".
    """
    if right == images:
        return 1.0
    harmonic = float((1 / np.arange(1, images + 1)).sum())
    return (harmonic + (images - harmonic) * (right - 1) / (images - 1)) / images
