"""Blurring, shifting and magnifying image arrays (n, C, H, W); random amounts differ between the images."""

from __future__ import annotations

import numpy as np


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur."""
    from scipy import ndimage

    return np.asarray(ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest"))


def smear(x: np.ndarray, radius: float, sigma: float, degrees: np.ndarray) -> np.ndarray:
    """Motion blur: a one-sided Gaussian of standard deviation `sigma` along each image's own direction."""
    taps = np.exp(-0.5 * (np.arange(2 * int(radius) + 1) / sigma) ** 2)
    taps = (taps[taps > 1e-3] / taps[taps > 1e-3].sum()).astype(np.float32)
    margin, (height, width) = len(taps), x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="edge")
    direction = np.stack((np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))), axis=1)
    smeared = np.zeros_like(x)
    for distance, tap in enumerate(taps):
        offsets = margin + np.rint(distance * direction).astype(np.int64)
        for top, left in np.unique(offsets, axis=0):
            members = np.flatnonzero((offsets == (top, left)).all(axis=1))
            smeared[members] += tap * padded[members, :, top : top + height, left : left + width]
    return smeared


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of each image, magnified to the size of the whole image."""
    rows, columns = ((np.arange(side) - (side - 1) / 2) / factor + (side - 1) / 2 for side in x.shape[2:])
    return lerp(lerp(x, rows, 2), columns, 3)


def lerp(x: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis, at the same positions in every image."""
    positions = np.clip(positions, 0, x.shape[axis] - 1)
    low = np.minimum(positions.astype(np.int64), max(x.shape[axis] - 2, 0))
    part = (positions - low).astype(np.float32)
    part = part[:, None] if axis == 2 else part
    below, above = np.take(x, low, axis=axis), np.take(x, np.minimum(low + 1, x.shape[axis] - 1), axis=axis)
    return np.asarray(below + (above - below) * part)


def warp(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear samples at (n, H, W) positions, mirrored at the borders."""
    n, channels, height, width = x.shape
    image, channel = np.arange(n)[:, None, None, None], np.arange(channels)[:, None, None]
    low_row, low_column = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down = (rows - low_row).astype(np.float32)[:, None]
    right = (columns - low_column).astype(np.float32)[:, None]

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        result: np.ndarray = x[image, channel, _mirror(row, height)[:, None], _mirror(column, width)[:, None]]
        return result

    upper = at(low_row, low_column) * (1 - right) + at(low_row, low_column + 1) * right
    lower = at(low_row + 1, low_column) * (1 - right) + at(low_row + 1, low_column + 1) * right
    return np.asarray(upper * (1 - down) + lower * down)


def _mirror(position: np.ndarray, length: int) -> np.ndarray:
    period = max(2 * (length - 1), 1)
    position = np.abs(position) % period
    result: np.ndarray = np.minimum(position, period - position)
    return result
