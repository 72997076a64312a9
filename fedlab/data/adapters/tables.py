"""One split of a user's data as named columns: of arrays, of a torch data set, or of a mapping.

A table has the samples in the order in which they were given. What its columns mean is decided here, once for all forms
of data: ``image`` (or ``img``, ``images``) holds pictures, ``features`` feature vectors, ``label`` (or ``labels``,
``target``, ``targets``, ``y``) classes, ``domain`` and ``group`` annotations. ``x`` (or ``data``, ``input``) is
``image`` or ``features``, whichever fits its shape. Columns of other names reach the method as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from fedlab.data.files.images import PictureReader
from fedlab.data.files.pixels import as_pictures
from fedlab.data.sources.arrays import as_vectors
from fedlab.errors import DataError
from fedlab.seeding import global_generators
from fedlab.tracking.left_out import LeftOut

ALIASES = {
    **dict.fromkeys(("img", "images"), "image"),
    **dict.fromkeys(("labels", "target", "targets", "y"), "label"),
    **dict.fromkeys(("x", "data", "input", "inputs"), "x"),
}
"""Other names of columns. ``x`` stands for what a model is given, whatever its shape."""
_ANNOTATED = ("label", "domain", "group")


@dataclass(frozen=True)
class Table:
    """One split.

    Args:
        title: what the data is called.
        columns: samples by column, each with the samples as first axis. ``label``, ``domain`` and ``group`` may be
            text.
        class_names: names of the classes, for labels that are numbers; None where they are not known.
        clients: (n,) number of the client that holds each sample; None where nothing is divided yet.
        client_names: names of these clients.
        left_out: what was there and is not used.
    """

    title: str
    columns: Mapping[str, np.ndarray]
    class_names: tuple[str, ...] | None = None
    clients: np.ndarray | None = None
    client_names: Sequence[str] = ()
    left_out: tuple[LeftOut, ...] = field(default=())

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def select(self, rows: np.ndarray) -> Table:
        """The samples of some rows, in that order."""
        clients = None if self.clients is None else self.clients[rows]
        return replace(self, columns={name: values[rows] for name, values in self.columns.items()}, clients=clients)


def is_array(value: object) -> bool:
    """Whether a value is an array of samples, of NumPy or torch."""
    return isinstance(value, np.ndarray | Tensor) and value.ndim > 0


def standard(
    title: str,
    given: Mapping[str, Any],
    key: str,
    columns: Mapping[str, str] | None = None,
    class_names: tuple[str, ...] | None = None,
    left_out: tuple[LeftOut, ...] = (),
) -> Table:
    """A table of columns with any names.

    Args:
        title: what the data is called.
        given: samples by column.
        key: what the data is, for errors.
        columns: names of its columns → names of FedLab's, for those that are to be renamed; several columns of numbers
            may become ``features`` together.
        class_names: as in `Table`.
        left_out: likewise.

    Raises:
        DataError: columns of different lengths or of types that no tensor holds, two of one name, or no samples.
    """
    found: dict[str, list[str]] = {}
    for name in given:
        if not isinstance(name, str):
            raise DataError(key, name, "columns whose names are text", "rename them")
        found.setdefault(_meaning(name, given, columns), []).append(name)
    for name in (name for name in columns or () if name not in given):
        raise DataError(key, name, f"a column of the data: {', '.join(map(str, given))}", "correct columns=…")
    counted = list(left_out)
    made = dict(
        _column(name, [given[one] for one in names], f"{key}: {' and '.join(names)}", counted)
        for name, names in found.items()
    )
    lengths = {name: len(values) for name, values in made.items()}
    if len(set(lengths.values())) != 1 or not any(lengths.values()):
        raise DataError(key, lengths, "columns with the same number of samples, at least one", "check the data")
    return Table(title, made, class_names, left_out=tuple(counted))


def _meaning(name: str, given: Mapping[str, Any], columns: Mapping[str, str] | None) -> str:
    """FedLab's name of a column."""
    if columns is not None and name in columns:
        return columns[name]
    other = ALIASES.get(name.lower(), name)
    return name if other != "x" and other in given else other


def _column(name: str, parts: list[Any], key: str, left_out: list[LeftOut]) -> tuple[str, np.ndarray]:
    """Name and values of one column, which may be put together from several; what is not used is appended."""
    if len(parts) > 1 and name != "features":
        raise DataError(key, name, "one column of this name; only features are put together from several", "rename one")
    if len(parts) > 1:
        return name, np.concatenate([_vectors(stacked(part, key), key) for part in parts], axis=1)
    (values,) = parts
    if name in ("image", "x") and _are_pictures(values):
        return "image", _pictures(values, key, left_out)
    values = stacked(values, key)
    if name == "x":
        name = "features" if values.ndim == 2 else "image"
    if name == "image":
        return name, as_pictures(values, key)
    if name == "features":
        return name, _vectors(values, key)
    if name in _ANNOTATED:
        return name, values.astype(str) if values.dtype.kind == "O" and _are_texts(values) else values
    return name, values.astype(np.float32) if values.dtype == np.float64 else values


def _vectors(values: np.ndarray, key: str) -> np.ndarray:
    """Feature vectors (n, d); single numbers become vectors of one."""
    return as_vectors(values[:, None] if values.ndim == 1 else values, key)


def stacked(values: Any, key: str) -> np.ndarray:
    """A column as one array.

    Args:
        values: an array of NumPy or torch, or a sequence of arrays, numbers or text, one for each sample.
        key: what they are, for errors.

    Raises:
        DataError: the samples differ in shape, or are no arrays.
    """
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise DataError(key, type(values).__name__, "an array, or a list with one value for each sample", "convert it")
    parts = [part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part) for part in values]
    shapes = list(dict.fromkeys(part.shape for part in parts))
    if len(shapes) > 1:
        found = " and ".join(map(str, shapes[:2]))
        raise DataError(key, f"shapes {found}", "samples of one shape", "resize or pad them to one shape")
    return np.stack(parts) if parts else np.empty(0)


def _are_texts(values: np.ndarray) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_pictures(values: Any) -> bool:
    """Whether a column consists of pictures of Pillow."""
    image = sys.modules.get("PIL.Image")
    return image is not None and isinstance(values, Sequence) and bool(values) and isinstance(values[0], image.Image)


def _pictures(values: Sequence[Any], key: str, left_out: list[LeftOut]) -> np.ndarray:
    """Pictures of Pillow as (n, C, H, W) uint8; they are gray if all of them are."""
    reader = PictureReader(key)
    channels = 1 if all(picture.mode in ("1", "L", "I;16", "I;16B", "I;16L") for picture in values) else 3
    found = stacked(
        [reader.sample(picture, f"sample {row}", None, channels) for row, picture in enumerate(values)], key
    )
    left_out += reader.left_out
    return found


def table_of_items(data: Any, key: str, columns: Mapping[str, str] | None = None) -> Table:
    """A table of a torch data set or a list, each of whose items is read once: x, (x, y), or a mapping of columns.

    Args:
        data: the items, by number.
        key: what the data is, for errors.
        columns: as in `standard`.

    Raises:
        DataError: it has no length, its items are no samples, or they differ in form.
    """
    title, names = type(data).__name__, getattr(data, "classes", None)
    try:
        count = len(data)
    except (TypeError, NotImplementedError) as error:  # the second is what iterable data sets of some libraries raise
        expected = "a data set with a length and items by number"
        raise DataError(key, title, expected, "collect an iterable data set: list(dataset) of (x, y)") from error
    found: dict[str, list[Any]] = {}
    with global_generators(0, "given data"):  # so that random transforms give the same samples again
        for row in range(count):
            item = _fields(data[row], f"{key}: item {row} of {title}")
            if row and item.keys() != found.keys():
                known, other = ", ".join(found), ", ".join(item)
                raise DataError(f"{key}: item {row}", other, f"the columns of item 0: {known}", "make all items alike")
            for name, value in item.items():
                found.setdefault(name, []).append(value)
    texts = isinstance(names, list | tuple) and bool(names) and all(isinstance(name, str) for name in names)
    return standard(title, found, key, columns, class_names=tuple(names) if texts and names else None)


def _fields(item: Any, key: str) -> dict[str, Any]:
    """One item of a torch data set by column."""
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, tuple | list):
        if len(item) in (1, 2):
            return dict(zip(("x", "label"), item, strict=False))
        expected = "x, (x, y) or a mapping of columns"
        raise DataError(key, f"a {type(item).__name__} of {len(item)}", expected, "return a mapping: {'image': x, …}")
    return {"x": item}
