"""How the test samples are divided, once it is known who has which training samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedlab.data.partition.dividing import apportion
from fedlab.data.partition.naming import Numbered
from fedlab.data.partition.partition import Split, check_names, class_counts, labels_or_zero
from fedlab.data.partition.ragged import Ragged
from fedlab.data.samples import Dataset


def by_column(dataset: Dataset, column: str, names: Sequence[str], train: np.ndarray, test: np.ndarray) -> Split:
    """One part for each value of a column. A value that occurs only in the test samples gives a part without training.

    Args:
        dataset: the samples.
        column: integer codes into `names`.
        names: one a code.
        train: indices of the train samples to divide.
        test: indices of the test samples.

    Raises:
        DataError: two of the values have the same name.
    """
    mine, theirs = dataset.train[column][train], dataset.test[column][test]
    trained = np.unique(mine)
    held = np.concatenate([trained, np.setdiff1d(theirs, trained)])
    code = np.empty(len(names), np.int64)
    code[held] = np.arange(len(held))
    found = [names[int(value)] for value in held]
    check_names(f"data column {column!r}", found)
    trains, tests = (Ragged.by_owner(code[values], len(held)) for values in (mine, theirs))
    return Split(trains, tests, found, values=held.tolist())


def matched(
    dataset: Dataset,
    owner: np.ndarray,
    clients: int,
    train: np.ndarray,
    test: np.ndarray,
    rng: np.random.Generator,
) -> Split:
    """Divide the test samples as the training samples are divided, class by class (largest remainder).

    Samples of classes that no client trains are divided at random in proportion to the clients' numbers of training
    samples. All other draws are made before, so that they do not depend on such samples.
    """
    parts = Ragged.by_owner(owner, clients)
    train_labels, test_labels = labels_or_zero(dataset.train)[train], labels_or_zero(dataset.test)[test]
    counts = class_counts(parts, train_labels, max(1, dataset.train.num_classes))
    test_owner = np.full(len(test), -1, np.int64)
    for c in np.unique(test_labels):
        members = rng.permutation(np.flatnonzero(test_labels == c))
        total = counts[:, c].sum()
        if total:
            test_owner[members] = np.repeat(np.arange(clients), apportion(counts[:, c] / total, len(members)))
    strays = rng.permutation(np.flatnonzero(test_owner < 0))
    test_owner[strays] = np.repeat(np.arange(clients), apportion(parts.sizes / len(train), len(strays)))
    return Split(parts, Ragged.by_owner(test_owner, clients), Numbered(clients))
