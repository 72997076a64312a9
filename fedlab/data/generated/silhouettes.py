"""Eight silhouettes, turned, scaled and moved, on smooth backgrounds, drawn in different styles."""

from __future__ import annotations

import numpy as np

from fedlab.data.files.images import resize

KINDS = ("disc", "ring", "half disc", "square", "triangle", "bar", "cross", "corner")
STYLES = ("photo", "gray", "sketch", "poster")
NOISE = 0.05
_TURN = np.pi / 6  # largest angle
_HALF, _SHIFT = (0.24, 0.36), 0.1  # half width, and largest shift, in units of the image's side
_FINER = 3  # rows and columns of points in a pixel, so that edges are smooth
_INK = 0.12  # width of a sketched line, in units of the silhouette's half width
_GROUND, _PAINT = (0.1, 0.45), (0.55, 1.0)  # ranges of the colors of a background and of a silhouette
_CELLS = 3  # of a background in each direction, between which colors change smoothly


def draw_silhouettes(labels: np.ndarray, styles: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Images (n, 3, size, size) float32 in [0, 1].

    Each silhouette is turned by up to 30°, has a half width of 0.24 to 0.36 of the image and is moved by up to 0.1 of
    it. Neither its color nor its background tells its kind. ``photo`` fills it with a bright color on a smooth darker
    background of other colors, ``gray`` is the same without colors, ``sketch`` draws a dark outline on bright ground,
    and ``poster`` fills it with a bright color on a ground of a single darker one. Normal noise of 0.05 is added.

    Args:
        labels: (n,) indices into `KINDS`.
        styles: (n,) indices into `STYLES`.
        size: height and width in pixels.
        rng: makes all draws.
    """
    count = len(labels)
    turn, half = rng.uniform(-_TURN, _TURN, count), rng.uniform(*_HALF, count)
    middle = 0.5 + rng.uniform(-_SHIFT, _SHIFT, (count, 2))
    ground = resize(rng.uniform(*_GROUND, (count, 3, _CELLS, _CELLS)).astype(np.float32), size)
    ink = rng.uniform(*_PAINT, (count, 3)).astype(np.float32)
    noise = rng.standard_normal((count, 3, size, size), dtype=np.float32)
    images = np.empty((count, 3, size, size), np.float32)
    points = (np.arange(size * _FINER) + 0.5) / (size * _FINER)
    for row, (label, style) in enumerate(zip(labels.tolist(), styles.tolist(), strict=True)):
        x, y = (points[None, :] - middle[row, 0]) / half[row], (points[:, None] - middle[row, 1]) / half[row]
        across, along = x * np.cos(turn[row]) + y * np.sin(turn[row]), y * np.cos(turn[row]) - x * np.sin(turn[row])
        depth = _depth(KINDS[label], across, along)
        inside = np.abs(depth) < _INK if STYLES[style] == "sketch" else depth > 0
        cover = inside.reshape(size, _FINER, size, _FINER).mean(axis=(1, 3), dtype=np.float32)
        images[row] = _drawn(STYLES[style], cover, ground[row], ink[row])
    seen: np.ndarray = np.clip(images + NOISE * noise, 0, 1)
    return seen


def _drawn(style: str, cover: np.ndarray, ground: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """An image (3, size, size) of what is covered (size, size), with a background and a color."""
    if style == "sketch":
        return np.broadcast_to(0.92 - 0.8 * cover, ground.shape)
    if style == "gray":
        ground, ink = np.broadcast_to(ground.mean(axis=0), ground.shape), np.broadcast_to(ink.mean(), ink.shape)
    elif style == "poster":
        ground = np.broadcast_to(ground.mean(axis=(1, 2), keepdims=True), ground.shape)
    image: np.ndarray = cover * ink[:, None, None] + (1 - cover) * ground
    return image


def _depth(kind: str, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """How far points lie inside a silhouette of half width 1 around the origin; negative outside of it."""
    a, b, radius = np.abs(across), np.abs(along), np.hypot(across, along)
    depth: np.ndarray
    match kind:
        case "disc":
            depth = 0.8 - radius
        case "ring":
            depth = np.minimum(0.9 - radius, radius - 0.45)
        case "half disc":
            depth = np.minimum(1.0 - np.hypot(across, along + 0.4), along + 0.4)
        case "square":
            depth = 0.72 - np.maximum(a, b)
        case "triangle":
            depth = np.minimum(along + 0.55, (1.0 - along - 1.75 * a) / 2)
        case "bar":
            depth = np.minimum(0.3 - a, 1.0 - b)
        case "cross":
            depth = np.maximum(np.minimum(0.27 - a, 0.95 - b), np.minimum(0.27 - b, 0.95 - a))
        case _:
            depth = np.maximum(
                _box(across, along, (-0.75, -0.2), (-0.75, 0.75)), _box(across, along, (-0.75, 0.75), (-0.75, -0.2))
            )
    return depth


def _box(x: np.ndarray, y: np.ndarray, columns: tuple[float, float], rows: tuple[float, float]) -> np.ndarray:
    sides = (x - columns[0], columns[1] - x, y - rows[0], rows[1] - y)
    return np.minimum(np.minimum(sides[0], sides[1]), np.minimum(sides[2], sides[3]))
