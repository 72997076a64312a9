"""Segmentation masks as files: class indices, listed colors, or numbers of instances."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlab.data.files.reading import reading
from fedlab.data.files.spelling import checked_name
from fedlab.data.files.text import lines_of, read_text
from fedlab.errors import DataError
from fedlab.storage.plain import check_plain

UNLABELED = -1
"""What a mask column holds where there is no label."""
_KEY = "data.source.path"
_FIX = "replace it with a whole PNG"


@dataclass(frozen=True)
class ClassTable:
    """Names of the classes, and their colors if color masks are read.

    Args:
        names: one per class.
        colors: (r, g, b) of each class, or empty.
        values: mask value of each class, or empty where class k is the value k.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()
    values: tuple[int, ...] = ()


def read_classes(path: Path) -> ClassTable:
    """Class names in the order of their indices, one per line, each optionally followed by its color (three numbers).

    Raises:
        DataError: an empty file, names that repeat, or colors for some classes only.
    """
    names: list[str] = []
    colors: list[tuple[int, int, int]] = []
    lines = [checked_name(line.strip(" \t"), _KEY, path) for line in lines_of(read_text(path, _KEY))]
    for line in filter(None, lines):
        words = re.split(r"[ \t]+", line)
        if len(words) > 3 and all(word.isdecimal() and int(word) < 256 for word in words[-3:]):
            red, green, blue = map(int, words[-3:])
            colors.append((red, green, blue))
            words = words[:-3]
        names.append(" ".join(words))
    wrong = not names or len(set(names)) < len(names) or len(set(colors)) < len(colors)
    if wrong or len(colors) not in (0, len(names)):
        raise DataError(
            "classes.txt", f"{path}: {len(names)} names, {len(colors)} colors",
            "one name per line, all different; either all lines have a color too, as in 'name r g b', or none has",
        )  # fmt: skip
    return ClassTable(tuple(names), tuple(colors))


def read_mask(
    path: Path,
    table: ClassTable,
    ignore: Sequence[int],
    size: tuple[int, int] | None,
    expected: tuple[int, int] | None = None,
) -> np.ndarray:
    """A mask file as (h, w) int64 class indices, −1 where it is unlabeled.

    Args:
        path: a palette or gray PNG of class indices, or a color PNG where the table has colors.
        table: the classes.
        ignore: values that mean unlabeled, unless a class has them; in color masks, every color that is not listed
            does.
        size: height and width of the result, by nearest neighbor; None keeps the file's own.
        expected: height and width the file must have.

    Raises:
        DataError: unreadable, of another size, a color mask without colors, or a value without a class.
    """
    with reading(_KEY, str(path), "a readable mask", _FIX):
        from PIL import Image

        check_plain(path)
        with Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA"):
                values = np.asarray(picture)
            elif table.colors:
                values = _by_color(np.asarray(picture.convert("RGB")), table.colors)
            else:
                fix = "list the classes with their colors in classes.txt: name r g b"
                raise DataError(_KEY, f"{path}: colors", "class indices (a gray or palette PNG)", fix)
    _check_values(values, path, "one class index per pixel", expected)
    mask = values.astype(np.int64)
    if table.values:
        mask = _by_value(mask, table.values, ignore, path)
    else:
        mask[np.isin(mask, ignore)] = UNLABELED
    if (top := int(mask.max(initial=-1))) >= len(table.names):
        raise DataError(
            _KEY, f"{path}: class {top}", f"classes from 0 to {len(table.names) - 1}, as classes.txt lists them",
            "add the class, or set data.source.ignore",
        )  # fmt: skip
    return mask if size is None else nearest(mask, size)


def read_instances(
    path: Path, ignore: Sequence[int], size: tuple[int, int] | None, expected: tuple[int, int] | None = None
) -> np.ndarray:
    """A mask file as (h, w) int32 numbers of instances: 0 is background, and −1 where it is void.

    Args:
        path: a palette or gray PNG of numbers, of 8 or 16 bits; or a color PNG, in which the color (r, g, b) stands for
            the number r + 256 g + 65536 b, as in COCO's panoptic format.
        ignore: numbers that mean void.
        size: height and width of the result, by nearest neighbor; None keeps the file's own.
        expected: height and width the file must have.

    Raises:
        DataError: unreadable, or of another size.
    """
    with reading(_KEY, str(path), "a readable mask", _FIX):
        from PIL import Image

        check_plain(path)
        with Image.open(path) as picture:
            colored = picture.mode in ("RGB", "RGBA")
            values = np.asarray(picture.convert("RGB") if colored else picture)
    if colored:
        values = values.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    _check_values(values, path, "one number of an instance per pixel", expected)
    mask: np.ndarray = values.astype(np.int32)
    mask[np.isin(mask, ignore)] = UNLABELED
    return mask if size is None else nearest(mask, size)


def split_instances(values: np.ndarray, divisor: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of instances, and classes, of masks that hold both, as the instanceIds of Cityscapes do.

    A value of at least the divisor is class · divisor + number of the object; a smaller one is the class of pixels
    without an object; −1 is neither. Without a divisor all values are numbers of instances, and classes are the same.
    """
    if divisor is None:
        return values, values
    things = values >= divisor
    classes = np.where(things, values // divisor, values).astype(np.int64)
    return np.where(things, values, np.minimum(values, 0)), classes


def classes_of_instances(listed: Path, masks: Sequence[np.ndarray], divisor: int) -> ClassTable:
    """The classes of masks that hold instances too: those of the file `listed`, or else numbered up to the highest.

    Raises:
        DataError: a class that the file does not list.
    """
    top = max(int(split_instances(mask, divisor)[1].max()) for mask in masks)
    table = read_classes(listed) if listed.is_file() else ClassTable(tuple(map(str, range(top + 1))))
    if top >= len(table.names):
        expected = f"classes below {len(table.names)}, which classes.txt lists"
        raise DataError(
            _KEY, f"{listed.parent}: class {top}", expected, "check data.source.class_divisor, or add the class"
        )
    return table


def _check_values(values: np.ndarray, path: Path, what: str, expected: tuple[int, int] | None) -> None:
    if values.ndim != 2 or values.dtype.kind not in "iub":
        kind = f"{path}: {values.dtype}, shape {values.shape}"
        raise DataError(_KEY, kind, what, "save it as a gray or palette PNG")
    if expected is not None and values.shape != expected:
        sizes = f"{path}: {values.shape[0]}×{values.shape[1]}"
        raise DataError(_KEY, sizes, f"the size of its image, {expected[0]}×{expected[1]}", "save it in that size")


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (h, w) at another size, every position the value under its center."""
    rows, columns = (((np.arange(n) + 0.5) * old / n).astype(np.int64) for n, old in zip(size, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def dominant_class(masks: np.ndarray, num_classes: int, background: int | None = None) -> np.ndarray:
    """The class that covers most of each mask.

    Args:
        masks: (n, h, w), −1 unlabeled.
        num_classes: K.
        background: class that counts only where there is no other.

    Returns:
        (n,) int64, the lowest of several; 0 where nothing is labeled.
    """
    counts = np.stack([(masks == k).sum(axis=(1, 2), dtype=np.float64) for k in range(num_classes)], axis=1)
    if background is not None:
        counts[:, background] = np.minimum(counts[:, background], 0.5)
    dominant: np.ndarray = counts.argmax(axis=1).astype(np.int64)
    return dominant


def _by_value(mask: np.ndarray, values: Sequence[int], ignore: Sequence[int], path: Path) -> np.ndarray:
    found, places = np.unique(mask, return_inverse=True)
    strange = sorted(set(found.tolist()) - set(values) - set(ignore))
    if strange:
        shown = ", ".join(map(str, strange[:10]))
        known = f"values of data.source.values ({', '.join(map(str, values))}) or of data.source.ignore"
        raise DataError(_KEY, f"{path}: {shown}", known, "add them to the one or the other")
    codes = np.array([values.index(value) if value in values else UNLABELED for value in found.tolist()], np.int64)
    return codes[places].reshape(mask.shape)


def _by_color(pixels: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> Any:
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    mask = np.full(codes.shape, UNLABELED, np.int64)
    for index, (red, green, blue) in enumerate(colors):
        mask[codes == 65536 * red + 256 * green + blue] = index
    return mask
