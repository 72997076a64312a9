"""Scenes of two-part objects: every material shows two patterns that only their common context links."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PATCH = 4
"""Height and width of a pattern in pixels."""
GRID = 8
"""Patches of a scene in each direction."""
INNER = 6
"""Patches of the central window in each direction; the object lies inside it."""
VARIANTS = 2


class MaterialScenes(NamedTuple):
    """`n` scenes, each with one rectangular object of one material on a background of another.

    Args:
        pixels: (n, 32, 32) float32 with mean 0; a pattern has variance 1.
        objects: (n, 32, 32) int16, 1 inside the object and 0 outside.
        parts: (n, 8, 8) int16, the pattern that each patch shows: 2 · material + variant.
        material: (n,) material of the object.
        background: (n,) material of the background.
    """

    pixels: np.ndarray
    objects: np.ndarray
    parts: np.ndarray
    material: np.ndarray
    background: np.ndarray


def draw_patterns(materials: int, rng: np.random.Generator) -> np.ndarray:
    """Two random patterns of each material, (materials · 2, 4, 4) with mean 0 and variance 1.

    Patterns of one material are drawn independently of each other, so that nothing in the pixels says that they belong
    together.
    """
    drawn = rng.standard_normal((materials * VARIANTS, PATCH, PATCH))
    drawn -= drawn.mean(axis=(1, 2), keepdims=True)
    patterns: np.ndarray = drawn / drawn.std(axis=(1, 2), keepdims=True)
    return patterns


def draw_scenes(count: int, patterns: np.ndarray, noise: float, rng: np.random.Generator) -> MaterialScenes:
    """Draw scenes of 8 × 8 patches.

    The object is a rectangle with sides of 3 to 5 patches at a random place inside the central 6 × 6 patches. In half
    of the scenes its four corner patches belong to the background. Every patch shows one of the two patterns of its
    material, chosen by a fair coin.

    Args:
        count: n.
        patterns: as `draw_patterns` returns them.
        noise: standard deviation of the normal noise that is added to every pixel.
        rng: the generator.
    """
    materials = len(patterns) // VARIANTS
    material, background = rng.permuted(np.tile(np.arange(materials), (count, 1)), axis=1)[:, :2].T
    sides = rng.integers(3, 6, (count, 2))
    first = (GRID - INNER) // 2 + rng.integers(0, INNER - sides + 1)
    last = first + sides - 1
    at = np.arange(GRID)
    inside = [(at >= first[:, axis, None]) & (at <= last[:, axis, None]) for axis in (0, 1)]
    edge = [(at == first[:, axis, None]) | (at == last[:, axis, None]) for axis in (0, 1)]
    corners = edge[0][:, :, None] & edge[1][:, None, :] & (rng.random(count) < 0.5)[:, None, None]
    covered = inside[0][:, :, None] & inside[1][:, None, :] & ~corners
    owner = np.where(covered, material[:, None, None], background[:, None, None])
    parts = owner * VARIANTS + rng.integers(0, VARIANTS, owner.shape)
    side = GRID * PATCH
    pixels = patterns[parts].transpose(0, 1, 3, 2, 4).reshape(count, side, side)
    pixels += noise * rng.standard_normal(pixels.shape)
    objects = covered.repeat(PATCH, axis=1).repeat(PATCH, axis=2)
    return MaterialScenes(
        pixels.astype(np.float32), objects.astype(np.int16), parts.astype(np.int16), material, background
    )
