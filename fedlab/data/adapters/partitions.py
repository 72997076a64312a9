"""Partitions of flwr-datasets as the clients of a table's samples."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedlab.data.adapters.hugging_face import table_of
from fedlab.data.adapters.tables import Table
from fedlab.data.files.reading import reason
from fedlab.data.partition.naming import Numbered
from fedlab.errors import DataError, FedLabError
from fedlab.tracking.left_out import LeftOut

_ROW = "fedlab: row"


def is_partitioner(value: object) -> bool:
    """Whether a value is a partitioner of flwr-datasets."""
    found = sys.modules.get("flwr_datasets.partitioner")
    return found is not None and isinstance(value, found.Partitioner)


def is_federated(value: object) -> bool:
    """Whether a value is a FederatedDataset of flwr-datasets."""
    found = sys.modules.get("flwr_datasets")
    return found is not None and isinstance(value, found.FederatedDataset)


def divided(data: Any, table: Table, partitioner: Any, key: str) -> Table:
    """A table whose samples a partitioner divides among clients.

    Args:
        data: what the table was made of. Of a data set of Hugging Face, the partitioner sees all columns; otherwise it
            sees those of the table that have one value for each sample, such as ``label``.
        table: the samples.
        partitioner: a partitioner without a data set. It is copied, so that it can be given again.
        key: what the data is, for errors.

    Raises:
        DataError: the partitioner has a data set of its own, or it cannot divide the samples.
    """
    import datasets

    kind = type(partitioner).__name__
    if partitioner.is_dataset_assigned():
        fix = f"make a new {kind}; or give it alone, as data=partitioner, with the samples that it has"
        raise DataError(key, f"{kind} with a data set of its own", "a partitioner without a data set", fix)
    if isinstance(data, datasets.Dataset):
        whole = data.with_format(None)
    else:
        single = {name: values for name, values in table.columns.items() if values.ndim == 1}
        whole = datasets.Dataset.from_dict(single or {"sample": np.arange(len(table))})
    partitioner = copy.deepcopy(partitioner)
    partitions = _partitions(partitioner, whole.add_column(_ROW, np.arange(len(table))), key)
    rows = [np.asarray(part.select_columns([_ROW])[:][_ROW], np.int64) for part in partitions]
    clients = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    left_out = _unassigned(len(table), len(np.unique(np.concatenate(rows))), kind)
    chosen = table.select(np.concatenate(rows))
    return replace(chosen, clients=clients, client_names=_names(partitioner), left_out=(*table.left_out, *left_out))


def own_partition(partitioner: Any, key: str, columns: Any = None) -> Table:
    """The data set of a partitioner, divided among clients as the partitioner divides it.

    Args:
        partitioner: a partitioner with a data set.
        key: what the data is, for errors.
        columns: as in `fedlab.data.adapters.hugging_face.table_of`.

    Raises:
        DataError: it has no data set, or cannot divide it.
    """
    import datasets

    name = type(partitioner).__name__
    if not partitioner.is_dataset_assigned():
        fix = "give both: data=(data, partitioner)"
        raise DataError(key, f"{name} without a data set", "a partitioner with a data set", fix)
    whole = partitioner.dataset
    partitions = _partitions(partitioner, None, key)
    table = table_of(datasets.concatenate_datasets(partitions), key, columns)
    clients = np.repeat(np.arange(len(partitions)), [len(part) for part in partitions])
    left_out = _unassigned(len(whole), min(len(table), len(whole)), name)
    return replace(table, clients=clients, client_names=_names(partitioner), left_out=(*table.left_out, *left_out))


def federated(data: Any, key: str, columns: Any = None) -> tuple[Table, Table | None]:
    """Training and test samples of a FederatedDataset, whose own partitions are the clients.

    The training split is the one that has a partitioner; of several it is ``train``. The test split is ``test``, with
    or without a partitioner; None if there is none.

    Raises:
        DataError: it cannot be loaded, or it is not clear which split is for training.
    """
    try:
        partitioners = dict(data.partitioners)
    except FedLabError:
        raise
    except Exception as error:  # of datasets, of the network, of a preprocessor
        fix = f"load a partition of it yourself, to see what is missing ({reason(error)})"
        raise DataError(key, "a FederatedDataset", "one whose data can be loaded", fix) from error
    split = "train" if "train" in partitioners else next(iter(partitioners), "")
    others = sorted(partitioners.keys() - {split, "test"})
    if not split or split == "test" or others:
        expected = (
            "a FederatedDataset with a partitioner for train, and for test if the clients have tests of their own"
        )
        raise DataError(key, f"partitioners for {', '.join(partitioners) or 'no split'}", expected, "change them")
    train = own_partition(partitioners[split], f"{key}: {split}", columns)
    if "test" in partitioners:
        return train, own_partition(partitioners["test"], f"{key}: test", columns)
    try:
        test = data.load_split("test")
    except ValueError:  # there is no such split
        return train, None
    return train, table_of(test, f"{key}: test", columns)


def _partitions(partitioner: Any, whole: Any, key: str) -> list[Any]:
    """All partitions as data sets, after the partitioner was given the samples, if they are given."""
    name = type(partitioner).__name__
    try:
        if whole is not None:
            partitioner.dataset = whole
        found = [partitioner.load_partition(index) for index in range(partitioner.num_partitions)]
    except Exception as error:  # partitioners raise errors of many kinds, such as for a column that is not there
        columns = ", ".join(one for one in partitioner.dataset.column_names if one != _ROW)
        expected = f"a partitioner that can divide these samples, with the columns {columns}"
        raise DataError(key, name, expected, f"{type(error).__name__}: {reason(error)}") from error
    columns = partitioner.dataset.column_names
    if any(sorted(part.column_names) != sorted(columns) for part in found):
        expected = "a partitioner that gives clients whole samples; this one divides the columns"
        raise DataError(key, name, expected, "choose another partitioner")
    if not any(map(len, found)):
        raise DataError(key, name, "a partitioner that gives some client a sample", "choose another partitioner")
    return found


def _unassigned(samples: int, assigned: int, name: str) -> tuple[LeftOut, ...]:
    if assigned >= samples:
        return ()
    return (LeftOut("samples", samples - assigned, f"{name} gives them to no client", samples),)


def _names(partitioner: Any) -> Sequence[str]:
    count = int(partitioner.num_partitions)
    natural = getattr(partitioner, "partition_id_to_natural_id", None) or {}
    names = [str(natural[index]) for index in range(count)] if len(natural) == count else []
    return names if len(set(names)) == count else list(Numbered(count))
