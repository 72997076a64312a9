"""Data sets of Hugging Face's `datasets` in memory, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlab.data.adapters.tables import ALIASES, Table, standard
from fedlab.data.files.reading import reading
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut

_USED = ("image", "features", "label", "domain", "group")


def table_of(data: Any, key: str, columns: Mapping[str, str] | None = None) -> Table:
    """One split as a table.

    A column of pictures is recognized by its type if there is one only, and so are classes by the type
    ``ClassLabel``; the others are recognized by name, see `fedlab.data.adapters.tables`. Columns that
    nothing names are left out.

    Args:
        data: a `datasets.Dataset`. If it transforms its samples, they are taken as they come out of that.
        key: what the data is, for errors.
        columns: names of its columns → names of FedLab's; those that it does not name are left out.

    Raises:
        DataError: there is no column that a model could be given, or what there is cannot be used.
    """
    title = data.info.dataset_name or data.builder_name or "dataset"
    if data.format["type"] == "custom":
        rows = [data[row] for row in range(len(data))]
        return standard(title, {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}, key, columns)
    used = dict(columns) if columns is not None else _recognized(data)
    for name in (name for name in used if name not in data.column_names):
        raise DataError(key, name, f"a column of the data: {', '.join(data.column_names)}", "correct columns=…")
    if not set(used.values()) - {"label", "domain", "group"}:
        raise DataError(
            key,
            f"columns {', '.join(data.column_names)}",
            "a column of pictures called image, or of feature vectors called features",
            'say which it is: fedlab.as_dataset(data, columns={"mine": "image", "mine_too": "label"}); several columns '
            "of numbers may be called features",
        )
    class_names = next((_classes(data, name) for name, meaning in used.items() if meaning == "label"), None)
    rest = tuple(name for name in data.column_names if name not in used)
    left_out = (LeftOut("columns", len(rest), "nothing says what they are", len(data.column_names), "", rest),)
    values = {name: _values(data, name, key) for name in used}
    return standard(title, values, key, used, class_names, left_out if rest else ())


def _recognized(data: Any) -> dict[str, str]:
    """Columns whose meaning is known from their name or type → FedLab's names."""
    import datasets

    found: dict[str, str] = {}
    for name in data.column_names:
        meaning = ALIASES.get(name.lower(), name)
        if meaning in (*_USED, "x") and meaning not in found.values():
            found[name] = meaning
    for kind, meaning in ((datasets.Image, "image"), (datasets.ClassLabel, "label")):
        typed = [name for name, feature in data.features.items() if isinstance(feature, kind)]
        if meaning not in found.values() and len(typed) == 1:
            found[typed[0]] = meaning
    return found


def _classes(data: Any, column: str) -> tuple[str, ...] | None:
    names = getattr(data.features[column], "names", None)
    return tuple(names) if names else None


def _values(data: Any, column: str, key: str) -> Any:
    """A column as an array, or as a list of pictures."""
    import datasets

    chosen = data.select_columns([column])
    with reading(f"{key}: {column}", column, "a readable column", "repair the data set"):
        if isinstance(data.features[column], datasets.Image):
            return list(chosen.with_format(None)[:][column])
        return np.asarray(chosen.with_format("numpy")[:][column])
