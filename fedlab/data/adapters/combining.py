"""Training and test samples of tables as one data set, with classes, domains and clients numbered alike in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedlab.data.adapters.tables import Table
from fedlab.data.classes import Pair, by_name, coded, labeled, plausible, test_part
from fedlab.data.partition.dividing import apportion
from fedlab.data.partition.matching import matched
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator
from fedlab.tracking.left_out import LeftOut

_KEY = "data"


def combined(
    train: Table, test: Table, class_names: Sequence[str] | None, name: str, warnings: Sequence[str] = ()
) -> Dataset:
    """One data set of two tables.

    If the training samples are divided among clients and the test samples are not, the test samples follow, class by
    class; clients are the owners of the samples, and `Dataset.divided` says so.

    Args:
        train: training samples.
        test: test samples.
        class_names: names of the classes; default: those that the tables know.
        name: name of the data set.
        warnings: warnings about the data, as sentences.

    Raises:
        DataError: the tables have different columns, or labels, domains or owners that cannot be numbered.
    """
    ours, theirs = (sorted(table.columns) for table in (test, train))
    if ours != theirs:
        fix = "give both splits the same columns, or leave one out by columns=…"
        raise DataError(_KEY, f"test samples with {', '.join(ours)}", f"the columns of train: {', '.join(theirs)}", fix)
    splits = {"train": dict(train.columns), "test": dict(test.columns)}
    classes: tuple[str, ...] = ()
    if "label" in train.columns:
        codes, classes = _labels(train, test, class_names)
        _put(splits, "label", codes)
    domains: tuple[str, ...] = ("all",)
    if "domain" in train.columns:
        codes, domains = coded("domain", (train.columns["domain"], test.columns["domain"]))
        _put(splits, "domain", codes)
    else:
        _put(splits, "domain", (np.zeros(len(train), np.int64), np.zeros(len(test), np.int64)))
    left_out = [*train.left_out, *(each for each in test.left_out if each not in train.left_out)]
    groups: tuple[str, ...] = ()
    told = list(warnings)
    if train.clients is not None:
        if "group" in splits["train"]:
            why = "the clients of the partition take its place"
            left_out.append(LeftOut("columns", 1, why, None, "", ("group",)))
        groups = tuple(_more_names(train, test))
        owners = train.clients, _test_clients(train, test, splits, classes, domains)
        _put(splits, "group", owners)
        empty = len(groups) - len(np.unique(np.concatenate(owners)))
        told.append("the clients are the partitions that the data was given with (data.partition: natural)")
        if empty:
            told.append(f"{empty:,} of {len(groups):,} partitions hold no sample, and are no clients")
    elif test.clients is not None:
        fix = "divide the training samples too, or give the test samples without a partition"
        raise DataError(_KEY, "test samples with a partition", "training samples with a partition", fix)
    elif "group" in train.columns:
        codes, groups = coded("group", (train.columns["group"], test.columns["group"]))
        _put(splits, "group", codes)
    ready = {split: Samples(columns, classes, domains, groups) for split, columns in splits.items()}
    notes: dict[str, Any] = {"left_out": tuple(left_out), "warnings": tuple(told), "divided": train.clients is not None}
    return plausible(Dataset(name, ready["train"], ready["test"], **notes))


def held_out(table: Table, share: float) -> tuple[Table, Table, str]:
    """A table as training and test samples, and a warning that says so.

    The share is drawn from each client, or from all samples if they are not divided, with the classes in proportion.
    The draw depends on the data only, so that a run that is resumed has the same samples.

    Args:
        table: the samples.
        share: of the samples that become test samples.

    Raises:
        DataError: there is a single sample.
    """
    rng = numpy_generator(0, "test share")
    labels = table.columns.get("label", np.zeros(len(table), np.int64))
    owners = np.zeros(len(table), np.int64) if table.clients is None else table.clients
    drawn: list[np.ndarray] = []
    for owner in np.unique(owners):
        mine = np.flatnonzero(owners == owner)
        kinds, places = np.unique(labels[mine], return_inverse=True)
        sizes = np.bincount(places, minlength=len(kinds))
        wanted = apportion(sizes / len(mine), test_part(len(mine), round(share * len(mine))))
        for kind, count in enumerate(wanted):
            drawn.append(rng.permutation(mine[places == kind])[:count])
    chosen = np.sort(np.concatenate(drawn))
    if not len(chosen):
        raise DataError(
            _KEY, f"{len(table)} samples", "test samples, or enough samples to hold some out", "give test=…"
        )
    rest = np.setdiff1d(np.arange(len(table)), chosen)
    of = "each client's samples" if table.clients is not None else "the samples"
    warning = (
        f"no test samples were given: {len(chosen):,} of {len(table):,} samples, {share:.0%} of {of}, are held out as "
        "test samples, always the same"
    )
    return table.select(rest), table.select(chosen), warning


def _labels(train: Table, test: Table, class_names: Sequence[str] | None) -> tuple[Pair, tuple[str, ...]]:
    """Class codes of both splits, and the classes."""
    pair = np.asarray(train.columns["label"]), np.asarray(test.columns["label"])
    if class_names is not None or any(values.dtype.kind not in "iu" for values in pair):
        return labeled(pair, class_names, "label")
    names = train.class_names, test.class_names
    if names[0] is None or names[1] is None or names[0] == names[1]:
        known = names[0] if names[0] is not None else names[1]
        return labeled(pair, known, "label")
    for split, (values, known) in zip(("train", "test"), zip(pair, names, strict=True), strict=True):
        if len(values) and (values.min() < 0 or values.max() >= len(known or ())):
            found = f"labels from {values.min()} to {values.max()}"
            raise DataError(
                f"label_{split}", found, f"integers from 0 to {len(known or ()) - 1}", "use a labeled split"
            )
    return by_name(pair, (names[0], names[1]), "label")


def _put(splits: dict[str, dict[str, np.ndarray]], column: str, values: Pair) -> None:
    for columns, part in zip(splits.values(), values, strict=True):
        columns[column] = part


def _more_names(train: Table, test: Table) -> Sequence[str]:
    return max(train.client_names, test.client_names, key=len)


def _test_clients(
    train: Table,
    test: Table,
    splits: dict[str, dict[str, np.ndarray]],
    classes: tuple[str, ...],
    domains: tuple[str, ...],
) -> np.ndarray:
    """The client of each test sample."""
    if test.clients is not None:
        return test.clients
    assert train.clients is not None
    kept = {
        split: {name: values for name, values in columns.items() if name in ("label", "domain")}
        for split, columns in splits.items()
    }
    plain = Dataset("", Samples(kept["train"], classes, domains), Samples(kept["test"], classes, domains))
    everything = np.arange(len(train)), np.arange(len(test))
    rng = numpy_generator(0, "tests of given clients")
    parts = matched(plain, train.clients, len(train.client_names), *everything, rng).test
    owners = np.empty(len(test), np.int64)
    owners[parts.order] = np.repeat(np.arange(len(parts)), parts.sizes)
    return owners
