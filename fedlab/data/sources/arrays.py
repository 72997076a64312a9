"""Arrays in memory as a data set: images or feature vectors; the source npz uses it too."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlab.data.classes import Names, Pair, coded, labeled, plausible
from fedlab.data.files.pixels import as_pictures
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError


def from_arrays(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    domains: Pair | None = None,
    groups: Pair | None = None,
    class_names: Names | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays in memory.

    Args:
        x_train: images, (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3; floats in [0, 1], whole
            numbers from 0 to 255 of any type, or truth values. Or feature vectors (n, d), which are neither scaled
            nor normalized.
        y_train: (n,) classes, as integers from 0 or as names.
        x_test: like `x_train`, of the same shape per sample.
        y_test: like `y_train`.
        domains: (train, test) arrays naming every sample's domain, by integer or text.
        groups: (train, test) arrays naming every sample's natural owner, by integer or text.
        class_names: one name per class, for integer labels; default: the numbers themselves,
            which must then be fewer than the samples.
        name: name of the data set.

    Raises:
        DataError: wrong shapes or types, values outside [0, 1], NaN, or labels that fit no class.
    """
    vectors = np.ndim(x_train) == 2
    read = as_vectors if vectors else as_pictures
    train, test = read(x_train, "x_train"), read(x_test, "x_test")
    if train.shape[1:] != test.shape[1:]:
        kind = "(d,)" if vectors else "(C, H, W)"
        raise DataError("x_test", test.shape[1:], f"{kind} as x_train: {train.shape[1:]}")
    column = "features" if vectors else "image"
    return annotated(column, (train, test), (y_train, y_test), domains, groups, class_names, name)


def as_vectors(values: Any, key: str) -> np.ndarray:
    """Feature vectors (n, d) as float32.

    Args:
        values: numbers or truth values of shape (n, d).
        key: name of the array in errors.

    Raises:
        DataError: another shape or type, or no values.
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not values.size:
        found = f"shape {values.shape}, dtype {values.dtype}"
        raise DataError(key, found, "feature vectors: numbers of shape (n, d), at least one", "leave text out")
    return np.ascontiguousarray(values, dtype=np.float32)


def annotated(
    column: str,
    values: Pair,
    labels: Pair,
    domains: Pair | None,
    groups: Pair | None,
    class_names: Names | None,
    name: str,
) -> Dataset:
    """A data set whose samples are in one column, with classes, domains and owners.

    Args:
        column: name of the column.
        values: samples of train and test, (n, …).
        labels: see `from_arrays`, as are all others.
        domains: likewise.
        groups: likewise.
        class_names: likewise.
        name: likewise.

    Raises:
        DataError: labels that fit no class, or other types.
    """
    codes, classes = labeled(labels, class_names)
    domain_codes, domain_names = coded("domain", domains) if domains is not None else (None, ("all",))
    group_codes, group_names = coded("group", groups) if groups is not None else (None, ())

    def samples(split: int) -> Samples:
        columns = {column: values[split], "label": codes[split]}
        columns["domain"] = domain_codes[split] if domain_codes else np.zeros(len(values[split]), dtype=np.int64)
        if group_codes:
            columns["group"] = group_codes[split]
        return Samples(columns, classes, domain_names, group_names)

    return plausible(Dataset(name, samples(0), samples(1)))
