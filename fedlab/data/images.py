"""Pictures to arrays and back between their forms, always as (n, C, H, W)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedlab.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})


def read_image(path: Path, size: int | None, channels: int, key: str = "data.source.path") -> np.ndarray:
    """Decode an image file to (C, H, W) uint8; see `decode`.

    Raises:
        DataError: the file cannot be decoded; the message names it.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return decode(picture, size, channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            key, str(path), "a readable image", f"remove the file or replace it with a whole one ({error})"
        ) from error


def decode(picture: Any, size: int | None, channels: int) -> np.ndarray:
    """A PIL image as (C, H, W) uint8.

    Args:
        picture: a PIL image of any 8-bit mode, or 16-bit grey (its lower byte is dropped). Transparency is dropped.
        size: height and width of the result, resized with antialiased bilinear interpolation without keeping the
            aspect ratio; None keeps the picture's own.
        channels: 1 (ITU-R 601 luma) or 3.

    Raises:
        ValueError: 32-bit pixels, whose range is unknown.
    """
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode!r} have no known range; convert to 8 or 16 bits")
    picture = picture.convert("RGB" if channels == 3 else "L")
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None].copy()


def resize(images: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Images (n, C, H, W) at another height and width, one number for both, bilinear and antialiased, in the same
    type.
    """
    wanted = (size, size) if isinstance(size, int) else size
    if images.shape[2:] == wanted or not len(images):
        return images.reshape(*images.shape[:2], *wanted)
    resized: np.ndarray = F.interpolate(
        torch.from_numpy(as_float(images)), size=wanted, mode="bilinear", antialias=True
    ).numpy()
    return to_uint8(resized) if images.dtype == np.uint8 else resized


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Images (n, 1 or 3, H, W) with 1 channel (ITU-R 601 luma) or 3 (grey repeated), in the same type."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=1)
    luma = luminance(as_float(images))
    return to_uint8(luma) if images.dtype == np.uint8 else luma


def luminance(images: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma (n, 1, H, W) of float images (n, 3, H, W)."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    luma: np.ndarray = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma.astype(np.float32)


def as_float(images: np.ndarray) -> np.ndarray:
    """float32 images in [0, 1]; uint8 is divided by 255."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32, copy=False)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in [0, 1], rounded to 8 bits; values outside are clipped."""
    result: np.ndarray = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return result
