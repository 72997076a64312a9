"""What the platform must know about the columns of a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping

ANNOTATIONS = frozenset({"label", "tags", "mask", "instances", "parts", "domain", "group"})
"""Columns that say something about a sample; all others are the sample itself, whatever its modality."""


def main_shape(columns: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """The input shape for which models are built: that of a sample's image, or else of its largest array.

    Args:
        columns: every column's dtype and shape per sample.

    Returns:
        (C, H, W) of images; () where samples consist of single numbers and annotations only.
    """
    shapes = {name: shape for name, (_, shape) in sorted(columns.items()) if shape and name not in ANNOTATIONS}
    if "image" in shapes:
        return shapes["image"]
    return max(shapes.values(), key=math.prod, default=())
