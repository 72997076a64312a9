"""A user's data in Python, in any of the forms that other libraries know, as a data set of FedLab."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedlab.data.adapters.combining import combined, held_out
from fedlab.data.adapters.forms import read_table
from fedlab.data.adapters.partitions import divided, federated, is_federated, is_partitioner, own_partition
from fedlab.data.adapters.tables import Table, is_array
from fedlab.data.samples import Dataset
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut

_KEY = "data"
TEST_SHARE = 0.2


def as_dataset(
    data: Any,
    *,
    test: Any = None,
    columns: Mapping[str, str] | None = None,
    partition: Any = None,
    test_share: float = TEST_SHARE,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
) -> Dataset:
    """A data set from data of any of these forms; `fedlab.run` does this with its argument ``data``.

    - a `fedlab.Dataset`, which is returned as it is;
    - arrays of NumPy or torch: ``(x, y)``, or ``(x_train, y_train, x_test, y_test)``. ``x`` holds images, (n, H, W),
      (n, H, W, C) or (n, C, H, W), uint8 or floats in [0, 1]; or feature vectors (n, d), which are used as they are;
    - a mapping of columns, such as ``{"image": …, "label": …, "group": …}``;
    - a torch `Dataset` with a length, whose items are ``x``, ``(x, y)`` or mappings of columns. Each item is read once;
    - a Hugging Face `Dataset` or `DatasetDict`;
    - a `FederatedDataset` of flwr-datasets, or one of its partitioners with a data set: its partitions are the clients;
    - ``{"train": …, "test": …}`` or a pair ``(train, test)``, each of one of these forms;
    - a pair ``(data, partitioner)``, with a partitioner of flwr-datasets that has no data set yet.

    If there are no test samples, a share of the samples of each class and client is held out for that, always the same,
    and a warning says so.

    Args:
        data: the samples.
        test: the test samples, if `data` holds training samples only.
        columns: names of the data's columns → ``image``, ``features``, ``label``, ``domain``, ``group`` or other names.
            Several columns of numbers may become ``features`` together.
        partition: a partitioner of flwr-datasets that divides the training samples among the clients. The test samples
            follow, class by class.
        test_share: share that is held out if there are no test samples.
        class_names: names of the classes, for labels that are numbers.
        name: name of the data set.

    Raises:
        DataError: the data has another form, or cannot be used; the message says what is accepted.
    """
    if isinstance(data, tuple) and len(data) == 2 and is_partitioner(data[1]) and partition is None:
        data, partition = data
    if isinstance(data, Dataset):
        return _unchanged(data, test, columns, partition, name)
    train, tests = _splits(data, test, columns, partition)
    if tests is None:
        if not 0 < test_share < 1:
            raise DataError("test_share", test_share, "a share between 0 and 1", "give test samples: test=…")
        train, tests, warning = held_out(train, test_share)
    else:
        warning = ""
    return combined(train, tests, class_names, name or train.title, [warning] if warning else [])


def _unchanged(data: Dataset, test: Any, columns: Any, partition: Any, name: str | None) -> Dataset:
    if test is not None or columns is not None:
        expected = "no test samples and no names of columns beside a fedlab.Dataset, which has its own"
        raise DataError(_KEY, data.name, expected, "leave test=… and columns=… out")
    if partition is not None:
        raise DataError(
            _KEY, data.name, "other data with a partitioner: a fedlab.Dataset is divided by data.partition",
            "give arrays, a mapping of columns, a torch Dataset or a Hugging Face Dataset",
        )  # fmt: skip
    return data if name is None else replace(data, name=name)


def _splits(data: Any, test: Any, columns: Any, partition: Any) -> tuple[Table, Table | None]:
    """Training and test samples; None if there are no test samples."""
    if is_federated(data):
        if test is not None or partition is not None:
            raise DataError(
                _KEY, "a FederatedDataset", "nothing beside it: it has splits and partitions", "leave it out"
            )
        return federated(data, _KEY, columns)
    pair = _pair(data)
    if pair is not None and test is not None:
        raise DataError(
            "test", type(test).__name__, "test samples in one place: data has them already", "leave one out"
        )
    (given, tests), left_out = (pair or (data, test), _further_splits(data))
    train = _one(given, _KEY if pair is None and test is None else f"{_KEY}: train", columns, partition)
    table = None if tests is None else _one(tests, f"{_KEY}: test", columns, None)
    return replace(train, left_out=(*train.left_out, *left_out)), table


def _one(data: Any, key: str, columns: Any, partition: Any) -> Table:
    """One split, divided among clients if it has a partitioner."""
    if isinstance(data, tuple) and len(data) == 2 and is_partitioner(data[1]) and partition is None:
        data, partition = data
    if partition is not None and not is_partitioner(partition):
        expected = "a partitioner of flwr_datasets.partitioner, such as DirichletPartitioner"
        raise DataError("partition", partition, expected, "steps of FedLab are set as data.partition")
    if is_partitioner(data):
        return own_partition(data, key, columns)
    table = read_table(data, key, columns)
    return table if partition is None else divided(data, table, partition, key)


def _pair(data: Any) -> tuple[Any, Any] | None:
    """Training and test samples of data that names its splits; the second is None if there is none for tests."""
    if isinstance(data, Mapping) and "train" in data:
        return data["train"], data.get("test")
    if isinstance(data, Mapping) and _is_dict_of_splits(data):
        if len(data) != 1:
            splits = ", ".join(map(str, data))
            raise DataError(_KEY, f"the splits {splits}", "splits called train and test", "rename them, or give one")
        return next(iter(data.values())), None
    if isinstance(data, tuple) and len(data) == 4 and all(map(is_array, data)):
        return data[:2], data[2:]
    if (
        isinstance(data, tuple)
        and len(data) == 2
        and not any(is_array(part) or isinstance(part, list) for part in data)
    ):
        return data
    return None


def _is_dict_of_splits(data: Mapping[Any, Any]) -> bool:
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(data, datasets.DatasetDict)


def _further_splits(data: Any) -> list[LeftOut]:
    """Splits of a mapping of splits that are neither for training nor for tests."""
    if not (isinstance(data, Mapping) and "train" in data):
        return []
    others = {str(name): part for name, part in data.items() if name not in ("train", "test")}
    fix = "data.validation holds back validation samples of each client"
    why = "only the splits train and test are used"
    return [LeftOut(f"samples of {name}", _length(part), why, None, fix) for name, part in others.items()]


def _length(part: Any) -> int:
    return len(part) if hasattr(part, "__len__") else 0
