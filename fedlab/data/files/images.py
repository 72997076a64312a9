"""Pictures to arrays and back between their forms, always as (n, C, H, W)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedlab.data.files.pixels import as_pictures
from fedlab.data.files.reading import read_each, reading, reason
from fedlab.errors import DataError
from fedlab.storage.plain import check_plain
from fedlab.tracking.left_out import LeftOut

UNREAD = "their ending is none of a picture"
"""Why a file is passed over where pictures are looked for."""
# registered by Pillow, which only reads their headers, asks another program or finds no picture of known range in them
_NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_REPAIR = "remove the file or replace it with a whole one"
_SHRINK = "make the picture smaller, or take it out"
_DEEPEST = 2**16 - 1


@lru_cache(maxsize=1)
def picture_endings() -> frozenset[str]:
    """Endings of files that Pillow reads, in small letters with their dot."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, judged by its ending; a file without one is opened."""
    if path.suffix:
        return path.suffix.lower() in picture_endings()
    from PIL import Image

    try:
        check_plain(path)
        with Image.open(path):
            return True
    except Exception:  # whatever Pillow raises: it is no picture, and is counted as left out
        return False


class PictureReader:
    """Reads the pictures of one source, and counts frames and gray levels that are not kept.

    Args:
        key: configuration key that led to them, for messages.
    """

    def __init__(self, key: str = "data.source.path") -> None:
        self.key = key
        self._frames: dict[str, int] = {}
        self._deep: list[str] = []
        self._highest = 0

    def read(self, path: Path, size: int | None, channels: int) -> np.ndarray:
        """Decode an image file to (C, H, W) uint8; see `decode`.

        Raises:
            DataError: the file cannot be decoded; the message names it.
        """
        with _boundary(self.key, str(path), _REPAIR):
            from PIL import Image

            check_plain(path)
            with Image.open(path) as picture:
                self._count(picture, str(path))
                return decode(picture, size, channels)

    def sample(self, value: Any, name: str, size: int | None, channels: int) -> np.ndarray:
        """The same of a picture in memory: one of PIL, the bytes of a file, or an array as `pixels` takes it.

        Raises:
            DataError: it is none of these or cannot be decoded; the message names it.
        """
        with _boundary(self.key, name, "repair the data set"):
            from PIL import Image

            if isinstance(value, bytes | bytearray):
                value = Image.open(io.BytesIO(value))
            if not isinstance(value, Image.Image):
                value = _as_picture(value, self.key, name)
            self._count(value, name)
            return decode(value, size, channels)

    def read_all(self, files: Sequence[Path], size: int, channels: int) -> np.ndarray:
        """All pictures as (n, C, size, size) uint8.

        Raises:
            DataError: some cannot be decoded; the message has the first ten and their number.
        """
        images = np.empty((len(files), channels, size, size), dtype=np.uint8)

        def keep(row: int, path: Path) -> None:
            images[row] = self.read(path, size, channels)

        read_each(files, keep, "pictures")
        return images

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Frames after the first one, and gray levels that are lost when 16 bits are reduced to 8."""
        found = []
        if self._frames:
            fix = "save each frame as a picture of its own, if they count"
            named = tuple(self._frames)[:10]
            found.append(
                LeftOut(
                    "frames", sum(self._frames.values()), "only the first frame of a file is read", None, fix, named
                )
            )
        if self._deep and self._highest < _DEEPEST // 2:
            levels, kept = self._highest + 1, (self._highest >> 8) + 1
            found.append(
                LeftOut(
                    "gray levels",
                    levels - kept,
                    f"only the upper 8 bits of 16-bit pictures are used, and the highest value in these "
                    f"{len(self._deep):,} pictures is {self._highest:,}, so they become dark",
                    levels,
                    f"multiply their pixels by {_DEEPEST // max(1, self._highest)}, all by the same number",
                    tuple(self._deep[:10]),
                )
            )
        return tuple(found)

    def _count(self, picture: Any, name: str) -> None:
        # the second picture of a camera's MPO is its preview
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
        if frames > 1:
            self._frames[name] = frames - 1
        if _is_deep(picture):
            self._deep.append(name)
            self._highest = max(self._highest, int(np.asarray(picture).max(initial=0)))


@contextmanager
def _boundary(key: str, name: str, fix: str) -> Iterator[None]:
    from PIL import Image

    with reading(key, name, "a readable image", fix):
        try:
            yield
        except Image.DecompressionBombError as error:
            raise DataError(key, name, "an image that is not too large", f"{_SHRINK} ({reason(error)})") from error


def read_image(path: Path, size: int | None, channels: int, key: str = "data.source.path") -> np.ndarray:
    """Decode one image file to (C, H, W) uint8; see `decode`.

    Raises:
        DataError: the file cannot be decoded; the message names it.
    """
    return PictureReader(key).read(path, size, channels)


def decode(picture: Any, size: int | None, channels: int) -> np.ndarray:
    """A PIL image as (C, H, W) uint8.

    Args:
        picture: a PIL image of any 8-bit mode, or 16-bit gray (its lower byte is dropped). Transparency is dropped.
        size: height and width of the result, resized with antialiased bilinear interpolation without keeping the
            aspect ratio; None keeps the picture's own.
        channels: 1 (ITU-R 601 luma) or 3.

    Raises:
        ValueError: 32-bit pixels, whose range is unknown.
    """
    from PIL import Image

    deep = _is_deep(picture)
    picture = _upright(picture)
    if deep:
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels of mode {picture.mode!r}, 32 bits, have no known range: save it with 8 bits")
    picture = picture.convert("RGB" if channels == 3 else "L")
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None].copy()


def _as_picture(values: Any, key: str, name: str) -> Any:
    """An array of one picture as a PIL image."""
    from PIL import Image

    pixels = as_pictures(np.asarray(values)[None], key, name)[0]
    pixels = pixels if pixels.dtype == np.uint8 else to_uint8(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)) if len(pixels) == 3 else pixels[0])


def _is_deep(picture: Any) -> bool:
    """Whether its pixels are of 16 bits: Pillow opens gray maps (PGM) and, in old versions, PNG as 32 bits."""
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PPM", "PNG"))


def _upright(picture: Any) -> Any:
    """The picture, turned as the camera's orientation tag says. Unreadable tags are ignored."""
    from PIL import Image

    picture.load()
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # unreadable notes of a camera: viewers show the picture as it lies
        orientation = 1
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    return picture.transpose(turns[orientation]) if orientation in turns else picture


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
    """Images (n, 1 or 3, H, W) with 1 channel (ITU-R 601 luma) or 3 (gray repeated), in the same type."""
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
