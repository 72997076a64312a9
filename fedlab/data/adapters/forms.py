"""The forms in which a user may give one split of data, told apart."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from fedlab.data.adapters.hugging_face import table_of
from fedlab.data.adapters.tables import Table, is_array, standard, table_of_items
from fedlab.errors import DataError

ACCEPTED = (
    "a fedlab.Dataset; arrays (x, y) or (x_train, y_train, x_test, y_test); a mapping of columns; a torch Dataset; a "
    "Hugging Face Dataset or DatasetDict; a FederatedDataset or a partitioner with a data set, of flwr_datasets; a "
    "pair (train, test) of these; or a pair (data, partitioner)"
)
"""What `fedlab.as_dataset` takes, for errors."""


def read_table(data: Any, key: str, columns: Mapping[str, str] | None = None) -> Table:
    """One split of data in any form.

    Args:
        data: arrays ``x`` or ``(x, y)``, a mapping of columns, a torch data set, or a data set of Hugging Face.
        key: what the data is, for errors.
        columns: names of its columns → names of FedLab's; several columns of numbers may become ``features`` together.

    Raises:
        DataError: it is something else, or cannot be used.
    """
    datasets = sys.modules.get("datasets")  # nobody has such an object without having imported the module
    if datasets is not None and isinstance(data, datasets.Dataset):
        return table_of(data, key, columns)
    if isinstance(data, Mapping):
        return standard("columns", data, key, columns)
    if isinstance(data, torch.utils.data.Dataset):
        return table_of_items(data, key, columns)
    if is_array(data):
        return standard("arrays", {"x": data}, key, columns)
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_column, data)):
        return standard("arrays", dict(zip(("x", "label"), data, strict=True)), key, columns)
    if isinstance(data, list) and data and isinstance(data[0], tuple | Mapping):
        return table_of_items(data, key, columns)
    raise DataError(key, f"{type(data).__module__}.{type(data).__qualname__}", ACCEPTED, _advice(data))


def _is_column(value: object) -> bool:
    if isinstance(value, list):  # of pictures, of numbers or of names
        return not value or not isinstance(value[0], Mapping | tuple | torch.utils.data.Dataset)
    return is_array(value)


def _advice(data: Any) -> str:
    if isinstance(data, torch.utils.data.DataLoader):
        return "give its data set: loader.dataset"
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # a data frame of pandas or polars
        return 'give columns: {"features": frame[names].to_numpy(), "label": frame["label"].to_numpy()}'
    if isinstance(data, str):
        return "name data in the configuration, as data.source; see `fedlab list sources`"
    return "convert it to one of these"
