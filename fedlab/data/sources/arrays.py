"""Image arrays as a data set: the way in for users' own data, and the core of the npz source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError

Pair = tuple[np.ndarray, np.ndarray]


def from_arrays(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    domains: Pair | None = None,
    groups: Pair | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays in memory.

    Args:
        x_train: images, (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3; uint8, or floats in [0, 1].
        y_train: (n,) classes, as integers from 0 or as names.
        x_test: like `x_train`, of the same height, width and channels.
        y_test: like `y_train`.
        domains: (train, test) arrays naming every sample's domain, by integer or text.
        groups: (train, test) arrays naming every sample's natural owner, by integer or text.
        class_names: one name per class, for integer labels; default: the numbers themselves.
        name: name of the data set.

    Raises:
        DataError: wrong shapes or types, values outside [0, 1], NaN, or labels that fit no class.
    """
    images = {"x_train": _images("x_train", x_train), "x_test": _images("x_test", x_test)}
    shapes = {key: values.shape[1:] for key, values in images.items()}
    if shapes["x_train"] != shapes["x_test"]:
        raise DataError("x_test", shapes["x_test"], f"(C, H, W) as x_train: {shapes['x_train']}")
    labels, classes = _labels((np.asarray(y_train), np.asarray(y_test)), class_names)
    domain_codes, domain_names = _codes("domain", domains) if domains is not None else (None, ("all",))
    group_codes, group_names = _codes("group", groups) if groups is not None else (None, ())

    def samples(split: int, key: str) -> Samples:
        columns = {"image": images[key], "label": labels[split]}
        columns["domain"] = domain_codes[split] if domain_codes else np.zeros(len(images[key]), dtype=np.int64)
        if group_codes:
            columns["group"] = group_codes[split]
        return Samples(columns, classes, domain_names, group_names)

    return Dataset(name, samples(0, "x_train"), samples(1, "x_test"))


def encode(values: Pair) -> tuple[Pair, tuple[str, ...]]:
    """Integer codes of the values of both splits and the names they stand for, in sorted order."""
    unique, codes = np.unique(np.concatenate(values), return_inverse=True)
    codes = codes.astype(np.int64)
    return (codes[: len(values[0])], codes[len(values[0]) :]), tuple(str(value) for value in unique)


def _images(key: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim not in (3, 4) or not values.size:
        raise DataError(
            key,
            f"shape {values.shape}",
            "images as (n, H, W), (n, H, W, C) or (n, C, H, W), at least one",
            "feature vectors are not supported; reshape them to pictures if that is what they are",
        )
    if values.ndim == 3:
        values = values[:, None]
    elif values.shape[1] in (1, 3) and values.shape[3] in (1, 3):
        raise DataError(
            key, f"shape {values.shape}", "one axis of 1 or 3 channels", "both axis 1 and 3 could be: pad the pictures"
        )
    elif values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    elif values.shape[1] not in (1, 3):
        raise DataError(key, f"shape {values.shape}", "1 or 3 channels, in axis 1 or 3", "convert the pictures to RGB")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind != "f":
        raise DataError(
            key, f"dtype {values.dtype}", "uint8, or floats in [0, 1]", "values 0 to 255: x.astype('uint8')"
        )
    low, high = float(values.min()), float(values.max())  # NaN if there is one
    if not (low >= 0 and high <= 1):
        raise DataError(
            key,
            f"values from {low:g} to {high:g}",
            "floats in [0, 1], without NaN",
            "divide by the largest value; normalisation is set by data.mean and data.std",
        )
    return np.ascontiguousarray(values, dtype=np.float32)


def _labels(values: Pair, class_names: Sequence[str] | None) -> tuple[Pair, tuple[str, ...]]:
    _check_codes("y", values)
    if values[0].dtype.kind == "U":
        if class_names is not None:
            raise DataError("class_names", class_names, "none when the labels are names already", "leave it out")
        return encode(values)
    top = max((int(part.max()) for part in values if len(part)), default=0)
    low = min((int(part.min()) for part in values if len(part)), default=0)
    names = tuple(str(name) for name in (class_names if class_names is not None else range(top + 1)))
    if low < 0 or top >= len(names):
        raise DataError("y_train, y_test", f"labels from {low} to {top}", f"integers from 0 to {len(names) - 1}")
    return (values[0].astype(np.int64), values[1].astype(np.int64)), names


def _codes(key: str, values: Pair) -> tuple[Pair, tuple[str, ...]]:
    pair = (np.asarray(values[0]), np.asarray(values[1]))
    _check_codes(key, pair)
    return encode(pair)


def _check_codes(key: str, values: Pair) -> None:
    for split, part in zip(("train", "test"), values, strict=True):
        if part.ndim != 1 or part.dtype.kind not in "iuU":
            raise DataError(
                f"{key}_{split}",
                f"shape {part.shape}, dtype {part.dtype}",
                "one integer or text per sample, shape (n,)",
                "one-hot labels: y.argmax(axis=1); a column: y.ravel()",
            )
    if (values[0].dtype.kind == "U") != (values[1].dtype.kind == "U"):
        raise DataError(f"{key}_test", f"dtype {values[1].dtype}", f"the kind of {key}_train: {values[0].dtype}")
