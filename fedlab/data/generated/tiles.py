"""Tiles of stained tissue with two independent factors: size and number of nuclei, and direction of the stroma."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIDE = 24
"""Height and width of a tile in pixels."""
LEVELS = 4
"""Values of each factor."""
_COUNTS, _RADII = (3, 9), (1.5, 2.6)
_PERIOD = 6.0  # pixels from one fiber to the next
# optical density of hematoxylin (nuclei) and eosin (stroma) in red, green and blue
_HEMATOXYLIN, _EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


class Tiles(NamedTuple):
    """`n` tiles.

    Args:
        pixels: (n, 3, 24, 24) float32 in [0, 1].
        nuclei: (n,) the first factor: 0 few small, 1 many small, 2 few large, 3 many large nuclei.
        stroma: (n,) the second factor: direction of the fibers, in steps of 45°.
    """

    pixels: np.ndarray
    nuclei: np.ndarray
    stroma: np.ndarray


def draw_tiles(nuclei: np.ndarray, stains: np.ndarray, noise: float, rng: np.random.Generator) -> Tiles:
    """Draw a tile for each of the given values of the first factor; the second factor is drawn independently of it.

    Args:
        nuclei: (n,) values of the first factor.
        stains: (n, 2) strengths of hematoxylin and eosin, about 1; each tile varies them by up to a fifth.
        noise: standard deviation of the normal noise that is added to every channel of a pixel.
        rng: the generator.
    """
    count = len(nuclei)
    stroma = rng.integers(0, LEVELS, count)
    strengths = stains * rng.uniform(0.8, 1.2, (count, 2))
    density = strengths[:, 0, None, None] * _nuclei(nuclei, rng)
    fibers = strengths[:, 1, None, None] * _fibers(stroma, rng)
    stained = density[:, None] * _HEMATOXYLIN[:, None, None] + fibers[:, None] * _EOSIN[:, None, None]
    pixels = np.exp(-stained) + noise * rng.standard_normal(stained.shape)
    return Tiles(np.clip(pixels, 0, 1).astype(np.float32), nuclei.astype(np.int64), stroma.astype(np.int64))


def _nuclei(kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much hematoxylin each pixel has, (n, 24, 24): soft disks at random places."""
    wanted, radius = np.take(_COUNTS, kinds % 2), np.take(_RADII, kinds // 2)
    rows, columns = np.indices((SIDE, SIDE))
    found = np.zeros((len(kinds), SIDE, SIDE))
    for number in range(max(_COUNTS)):
        top, left = rng.uniform(1, SIDE - 2, (2, len(kinds), 1, 1))
        distance = np.hypot(rows - top, columns - left)
        disk = 1 / (1 + np.exp(3 * (distance - radius[:, None, None])))
        found = np.maximum(found, disk * (number < wanted)[:, None, None])
    return found


def _fibers(directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much eosin each pixel has, (n, 24, 24): waves of one direction and a random phase."""
    angle = directions * np.pi / LEVELS + rng.uniform(-0.12, 0.12, len(directions))
    rows, columns = np.indices((SIDE, SIDE))
    along = np.cos(angle)[:, None, None] * columns + np.sin(angle)[:, None, None] * rows
    phase = rng.uniform(0, 2 * np.pi, len(directions))[:, None, None]
    waves: np.ndarray = 0.35 + 0.25 * np.sin(2 * np.pi * along / _PERIOD + phase)
    return waves
