"""Pictures of colored rectangles that do not touch, two of which share their color."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIDE = 64
"""Height and width of a picture in pixels."""
STEP = 4
"""Rectangles begin and end at multiples of so many pixels."""
COLORS = {
    "red": (0.85, 0.15, 0.15), "green": (0.15, 0.75, 0.2), "blue": (0.2, 0.25, 0.9), "yellow": (0.9, 0.85, 0.15),
    "violet": (0.65, 0.2, 0.8), "cyan": (0.15, 0.8, 0.85),
}  # fmt: skip
BACKGROUNDS = {"dark": (0.1, 0.1, 0.1), "light": (0.9, 0.9, 0.9)}
OBJECTS = 4
_SIDES = (3, 6)  # smallest and largest side in steps
_GAP = 1  # steps between two rectangles
_ATTEMPTS = 100


class Rectangles(NamedTuple):
    """`n` pictures of four rectangles.

    Args:
        pixels: (n, 3, 64, 64) float32 in [0, 1].
        instances: (n, 64, 64) int16: 0 is background, 1 to 4 are the rectangles; 1 and 2 have the same color.
        classes: (n, 64, 64) int64: 0 is background, 1 and above are the colors in the order of `COLORS`.
        shared: (n,) index of the color that two rectangles share.
    """

    pixels: np.ndarray
    instances: np.ndarray
    classes: np.ndarray
    shared: np.ndarray


def draw_rectangles(backgrounds: np.ndarray, noise: float, rng: np.random.Generator) -> Rectangles:
    """Draw a picture for each background.

    Sides are 12 to 24 pixels, and at least 4 pixels lie between two rectangles, and between a rectangle and the
    picture's border. Three of the six colors occur, one of them twice. Every rectangle varies its color a little.

    Args:
        backgrounds: (n,) indices into `BACKGROUNDS`.
        noise: standard deviation of the normal noise of every channel of a pixel.
        rng: the generator.
    """
    count, steps = len(backgrounds), SIDE // STEP
    drawn = rng.permuted(np.tile(np.arange(len(COLORS)), (count, 1)), axis=1)[:, : OBJECTS - 1]
    colors = np.concatenate([drawn[:, :1], drawn], axis=1)
    layouts = np.stack([_layout(steps, rng) for _ in range(count)])
    instances = layouts.repeat(STEP, axis=1).repeat(STEP, axis=2)
    palette = np.array(list(COLORS.values()))[colors] + rng.uniform(-0.03, 0.03, (count, OBJECTS, 3))
    palette = np.concatenate([np.array(list(BACKGROUNDS.values()))[backgrounds][:, None], palette], axis=1)
    rows = np.arange(count)[:, None, None]
    pixels = palette[rows, instances].transpose(0, 3, 1, 2) + noise * rng.standard_normal((count, 3, SIDE, SIDE))
    classes = np.concatenate([np.zeros((count, 1), np.int64), colors + 1], axis=1)[rows, instances]
    return Rectangles(np.clip(pixels, 0, 1).astype(np.float32), instances, classes, drawn[:, 0])


def _layout(steps: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the rectangles on a grid of steps, (steps, steps) int16; without room it is drawn anew."""
    while True:
        grid = np.zeros((steps, steps), np.int16)
        placed = 0
        for _ in range(_ATTEMPTS):
            height, width = rng.integers(_SIDES[0], _SIDES[1] + 1, 2)
            top, left = rng.integers(_GAP, steps - height - _GAP + 1), rng.integers(_GAP, steps - width - _GAP + 1)
            around = grid[top - _GAP : top + height + _GAP, left - _GAP : left + width + _GAP]
            if not around.any():
                placed += 1
                grid[top : top + height, left : left + width] = placed
            if placed == OBJECTS:
                return grid
