"""Holds samples back: named sets for the server, and validation samples of each client.

What is held back is a property of the data. It depends on the data and the settings of the set only, not on the run's
seed, so that all runs of a comparison hold back the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedlab.config.held import By, HeldSet, Validation
from fedlab.data.partition.dividing import apportion
from fedlab.data.partition.partition import Partition
from fedlab.data.partition.ragged import Ragged
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator

VALIDATION = "validation"
"""Name of the server's own validation samples."""
_LESS = "hold out a smaller share"


def hold_out(dataset: Dataset, held: Mapping[str, HeldSet], validation: Validation | None = None) -> Dataset:
    """The data set with the held-out sets among those that the server holds.

    Sets of one split have no sample in common. Samples of a set that the clients do not keep are no longer in the
    split. If `validation` is set, the same share of each set that was taken from the training samples is moved to a
    server set ``validation``, unless there is a set of this name.

    Args:
        dataset: as the source delivers it.
        held: settings of each set, by its name, in the order in which they are drawn.
        validation: settings of the validation samples.

    Raises:
        DataError: the source has a set of the same name, there are too few samples or owners, or no owners at all.
    """
    if not held:
        return dataset
    splits = {"train": dataset.train, "test": dataset.test}
    free = {split: np.arange(len(samples)) for split, samples in splits.items()}
    taken: dict[str, list[np.ndarray]] = {split: [] for split in splits}
    sets = dict(dataset.server)
    for name, wanted in held.items():
        key, samples = f"data.held.{name}", splits[wanted.split]
        if name in dataset.server:
            fix = f"choose another name; the source's own sets are {', '.join(dataset.server)}"
            raise DataError(key, name, "a name that no set of the source has", fix)
        rng = numpy_generator(wanted.seed, "held out", wanted.split, name)
        drawn = _draw(samples, np.arange(len(samples)), free[wanted.split], wanted, rng, key)
        sets[name] = samples.select(drawn)
        free[wanted.split] = np.setdiff1d(free[wanted.split], drawn)
        if not wanted.keep:
            taken[wanted.split].append(drawn)
    left = {}
    for split, samples in splits.items():
        gone = np.concatenate([np.empty(0, np.int64), *taken[split]]).astype(np.int64)
        rest = np.setdiff1d(np.arange(len(samples)), gone)
        if len(gone) and not len(rest):
            raise DataError("data.held", f"all {len(gone)} {split} samples", f"at least one {split} sample left", _LESS)
        left[split] = samples.select(rest) if len(gone) else samples
    if validation is not None and VALIDATION not in sets:
        sets = _with_validation(sets, held, validation)
    return replace(dataset, train=left["train"], test=left["test"], server=sets)


def _with_validation(
    sets: dict[str, Samples], held: Mapping[str, HeldSet], validation: Validation
) -> dict[str, Samples]:
    """The sets with a share of those that were drawn from training samples in a set of their own."""
    parts: list[Samples] = []
    for name in (name for name, wanted in held.items() if wanted.split == "train"):
        samples, everything = sets[name], np.arange(len(sets[name]))
        if not _divisible(samples, everything, validation.by):
            continue
        rng = numpy_generator(validation.seed, "validation", "server", name)
        drawn = _draw(samples, everything, everything, validation, rng, f"data.held.{name}")
        parts.append(samples.select(drawn))
        sets[name] = samples.select(np.setdiff1d(everything, drawn))
    if parts:
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].columns}
        sets[VALIDATION] = parts[0].with_columns(columns)
    return sets


def hold_validation(
    parts: Partition, train: Samples, validation: Validation | None, *, everybody: bool = True
) -> tuple[Partition, Ragged]:
    """Hold back validation samples of every client.

    Args:
        parts: who holds what.
        train: all training samples.
        validation: how many; None holds back nothing.
        everybody: whether the samples of all clients are here, so that it is a mistake if no client holds any back.

    Returns:
        The partition without the validation samples, and the validation samples of each client as indices into
        `train`. A client with a single sample, or a single owner, keeps it for training.

    Raises:
        DataError: no client can hold samples back, or the samples have no owners.
    """
    if validation is None:
        return parts, Ragged.joined([np.empty(0, np.int64)] * len(parts))
    kept, held = list[np.ndarray](), list[np.ndarray]()
    for client in range(len(parts)):
        mine = np.sort(parts.train[client])
        drawn = mine[:0]
        if _divisible(train, mine, validation.by):
            rng = numpy_generator(validation.seed, "validation", client)
            drawn = _draw(train, mine, mine, validation, rng, "data.validation")
        held.append(drawn)
        kept.append(np.setdiff1d(mine, drawn))
    if everybody and not any(map(len, held)):
        what = "owners" if validation.by == "group" else "training samples"
        expected = f"a client with at least two {what}"
        raise DataError(
            "data.validation", validation.share, expected, "remove it, or divide the data among fewer clients"
        )
    identity = f"{parts.fingerprint}{validation.model_dump_json()}"
    fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    return Partition(Ragged.joined(kept), parts.test, parts.names, parts.corruptions, fingerprint), Ragged.joined(held)


def _divisible(samples: Samples, members: np.ndarray, by: By) -> bool:
    """Whether some of these samples can be held back and others left."""
    return len(members) > 1 if by == "sample" else len(np.unique(_owners(samples, "data.validation")[members])) > 1


def _owners(samples: Samples, key: str) -> np.ndarray:
    if "group" not in samples.columns:
        fix = "set it to sample, or choose data that names the owner of each sample"
        raise DataError(f"{key}.by", "group", "samples with owners (a column 'group')", fix)
    return samples["group"]


def _draw(
    samples: Samples, pool: np.ndarray, free: np.ndarray, held: HeldSet | Validation, rng: np.random.Generator, key: str
) -> np.ndarray:
    """Indices to hold back, ascending: a share of the pool, at least one sample or owner, and all for a share of 1.

    Args:
        samples: of the split.
        pool: indices of the samples that the share refers to.
        free: indices of those that can be drawn.
        held: the share, and whether samples or owners are drawn.
        rng: for the draw.
        key: configuration key, for errors.

    Raises:
        DataError: too few samples or owners, or no owners.
    """
    if held.by == "group":
        owners = _owners(samples, key)
        there = np.unique(owners[free])
        count = _count(held.share, len(np.unique(owners[pool])), len(there), key, "owners")
        return free[np.isin(owners[free], rng.permutation(there)[:count])]
    count = _count(held.share, len(pool), len(free), key, "samples")
    labels = samples.columns.get("label")
    classes = labels[free] if labels is not None and labels.ndim == 1 else np.zeros(len(free), np.int64)
    kinds, codes = np.unique(classes, return_inverse=True)
    wanted = apportion(np.bincount(codes, minlength=len(kinds)) / len(free), count)
    drawn = [rng.permutation(np.flatnonzero(codes == kind))[:number] for kind, number in enumerate(wanted)]
    return np.sort(free[np.concatenate(drawn)])


def _count(share: float, total: int, free: int, key: str, what: str) -> int:
    """How many of `total` things to draw: the share, but at least one, and never all unless the share is 1."""
    if total < 2 and share < 1:
        raise DataError(key, f"{total} {what}", f"at least two {what}, so that one is left", "give it more data")
    count = total if share == 1 else max(1, min(round(share * total), total - 1))
    if count > free:
        expected = f"at most the {free} {what} that are in no other set"
        raise DataError(key, f"{count} of {total} {what}", expected, _LESS)
    return count
