"""What the platform must know about the columns of a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

ANNOTATIONS = frozenset({"label", "tags", "mask", "instances", "parts", "domain", "group"})
"""Columns that say something about a sample; all others are the sample itself, whatever its modality."""
_FIRST = ("image", "features")


def main_column(columns: Mapping[str, tuple[str, tuple[int, ...]]]) -> str | None:
    """The column for which models are built: a sample's image, or else its features, or else its largest array.

    Args:
        columns: every column's dtype and shape per sample.

    Returns:
        None where samples consist of single numbers and annotations only.
    """
    shapes = {name: shape for name, (_, shape) in sorted(columns.items()) if shape and name not in ANNOTATIONS}
    first = next((name for name in _FIRST if name in shapes), None)
    return first or max(shapes, key=lambda name: math.prod(shapes[name]), default=None)


def main_shape(columns: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """The shape per sample of the `main_column`: (C, H, W) of images; () where there is none."""
    name = main_column(columns)
    return () if name is None else columns[name][1]


def model_input(batch: Mapping[str, Any]) -> Tensor:
    """What the run's model is given of a batch: its `main_column`, (n, …).

    Raises:
        KeyError: no column of the batch is an array.
    """
    for name in _FIRST:
        if name in batch:
            found: Tensor = batch[name]
            return found
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    largest = main_column({name: (str(value.dtype), tuple(value.shape[1:])) for name, value in tensors.items()})
    return tensors["image" if largest is None else largest]
