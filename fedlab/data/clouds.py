"""Point clouds as arrays (n, N, 3): the unit ball, and parts of shapes for tests."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedlab.distill.point_views import ball_crop, complete
from fedlab.seeding import torch_generator

COLUMN = "points"
"""Name of the column that holds the clouds, float32."""
PARTIAL = (0.25, 0.5)
"""Smallest and largest share of a shape's points that is left of it in a partial shape."""


def unit_ball(clouds: np.ndarray) -> np.ndarray:
    """Clouds (…, N, 3) moved so that their mean is the origin and scaled so that the farthest point is at distance 1.

    A cloud whose points all coincide becomes N times the origin.
    """
    centered = clouds - clouds.mean(axis=-2, keepdims=True)
    radius = np.linalg.norm(centered, axis=-1).max(axis=-1)[..., None, None]
    scaled: np.ndarray = centered / np.where(radius > 0, radius, 1)
    return scaled


def parts(clouds: Tensor) -> Tensor:
    """Of each shape a ball around a random point, as somebody sees it who sees only a part, (n, ⌈N / 2⌉, 3).

    A share from U(0.25, 0.5) of the points is kept, and completed to half of the points as in
    `fedlab.distill.point_views.complete`. Position and size stay those of the whole shape. Equal shapes have equal
    parts in all runs, so that their results can be compared.

    Args:
        clouds: whole shapes (n, N, 3).
    """
    generator, size = torch_generator(0, "parts of shapes"), math.ceil(clouds.shape[1] / 2)
    return torch.cat(
        [complete(*ball_crop(some, *PARTIAL, generator), size, generator) for some in torch.split(clouds, 256)]
    )
