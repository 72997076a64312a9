"""How arrays of a user are read as pictures: one rule for all sources."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlab.errors import DataError


def as_pictures(values: Any, key: str, where: str = "") -> np.ndarray:
    """Pictures (n, C, H, W): uint8, or float32 in [0, 1].

    Args:
        values: (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3; whole numbers from 0 to 255 of any type, truth
            values (True is white), or floats in [0, 1].
        key: name of the array in errors.
        where: name of the sample, if the array is of a single sample.

    Raises:
        DataError: another shape, another type, values outside the range, NaN.
    """
    prefix = f"{where}: " if where else ""
    values = _channels_first(np.asarray(values), key, prefix)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind == "b":
        return np.ascontiguousarray(values, dtype=np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        fix = "convert it with numpy.asarray(…, dtype='uint8'), every picture of the same size"
        raise DataError(key, f"{prefix}dtype {values.dtype}", "uint8, or floats in [0, 1]", fix)
    low, high = values.min(), values.max()  # NaN if there is one
    if values.dtype.kind == "f":
        if low >= 0 and high <= 1:
            return np.ascontiguousarray(values, dtype=np.float32)
        found = f"{prefix}values from {low:g} to {high:g}"
        raise DataError(key, found, "floats in [0, 1], without NaN", float_advice(float(low), float(high)))
    if low >= 0 and high <= 255:
        return np.ascontiguousarray(values, dtype=np.uint8)
    found = f"{prefix}dtype {values.dtype}, values from {low} to {high}"
    raise DataError(key, found, "whole numbers from 0 to 255, or floats in [0, 1]", _whole_advice(int(low), int(high)))


def float_advice(low: float, high: float) -> str:
    """What to do with floats that end outside [0, 1]."""
    own = "normalization is set by data.mean and data.std"
    if not (np.isfinite(low) and np.isfinite(high)):
        return "find the pictures with NaN or infinite values and mend or drop them"
    if low < 0:
        undo = "(x + 1) / 2 if they were brought to [-1, 1]" if low >= -1 and high <= 1 else "x * std + mean"
        return f"undo the normalization, {undo}; {own}"
    return f"divide both splits by the highest value a pixel can have, {_full_scale(high):,} by these; {own}"


def _whole_advice(low: int, high: int) -> str:
    if low < 0:
        return "bring both splits to [0, 1] by the lowest and highest value a pixel can have: (x - low) / (high - low)"
    if high > 65535:
        return "divide both splits by the highest value a pixel can have: (x / highest).astype('float32')"
    if high > 16383:
        return "divide both splits by 257, from 16 bits to 8: (x // 257).astype('uint8')"
    full = _full_scale(high)
    return f"divide both splits by {full:,}, the highest of {full.bit_length()} bits: (x / {full}).astype('float32')"


def _full_scale(high: float) -> int:
    """The smallest full scale of a common bit depth, from 8 bits on, that is at least `high`."""
    return next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if high <= 2**bits - 1), int(np.ceil(high)))


def _channels_first(values: np.ndarray, key: str, prefix: str) -> np.ndarray:
    if values.ndim not in (3, 4) or not values.size:
        raise DataError(
            key,
            f"{prefix}shape {values.shape}",
            "images as (n, H, W), (n, H, W, C) or (n, C, H, W), at least one",
            "if they are flattened pictures, reshape them",
        )
    if values.ndim == 3:
        return values[:, None]
    first, last = values.shape[1] in (1, 3), values.shape[3] in (1, 3)
    if first and last:
        raise DataError(
            key,
            f"{prefix}shape {values.shape}",
            "exactly one axis of length 1 or 3, the channels",
            "axis 1 and axis 3 could both be the channels: pad the pictures",
        )
    if last:
        return values.transpose(0, 3, 1, 2)
    if not first:
        expected = "1 or 3 channels, in axis 1 or 3"
        fix = "take three of the channels, or their mean: x.mean(axis=1)"
        if values.shape[3] in (2, 4) or values.shape[1] in (2, 4):
            axis = 1 if values.shape[1] in (2, 4) else 3
            colors = {2: 1, 4: 3}[values.shape[axis]]
            cut = f"x[:, :{colors}]" if axis == 1 else f"x[..., :{colors}]"
            fix = f"leave the transparency out: {cut}"
        raise DataError(key, f"{prefix}shape {values.shape}", expected, fix)
    return values
