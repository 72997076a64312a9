"""Labels as class codes and class names: one rule for all sources, and notes about implausible classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedlab.data.files.spelling import checked_name
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut

Pair = tuple[np.ndarray, np.ndarray]
Names = Sequence[str] | Sequence[bytes] | np.ndarray
_EXAMPLES = 10


def coded(key: str, values: Pair) -> tuple[Pair, tuple[str, ...]]:
    """Codes (n,) int64 of the values of both splits, and the sorted names that the codes stand for.

    Args:
        key: what the values are, for errors.
        values: (n,) whole numbers or text; names that differ in their Unicode form only are one.

    Raises:
        DataError: other types, or text that is not UTF-8.
    """
    pair = _checked(key, values)
    unique, codes = np.unique(np.concatenate(pair), return_inverse=True)
    names = [checked_name(str(value), key, "a name") for value in unique]
    if unique.dtype.kind == "U":
        ordered = sorted(set(names))
        place = {name: code for code, name in enumerate(ordered)}
        codes = np.array([place[name] for name in names], np.int64)[codes]
        names = ordered
    codes = codes.astype(np.int64)
    return (codes[: len(pair[0])], codes[len(pair[0]) :]), tuple(names)


def labeled(
    values: Pair, class_names: Names | None, key: str = "y", remedy: str = "class_names"
) -> tuple[Pair, tuple[str, ...]]:
    """Class codes (n,) int64 of both splits and the classes' names.

    Args:
        values: (n,) whole numbers from 0, or names.
        class_names: one name per class, for whole numbers; default: the numbers themselves.
        key: what the values are, for errors.
        remedy: how classes are named, for errors.

    Raises:
        DataError: another type, a number without a class, or a number so high that there were more classes than
            samples.
    """
    pair = _checked(key, values)
    if pair[0].dtype.kind == "U":
        if class_names is not None:
            raise DataError(
                "class_names", class_names, "no class names, because the labels are names already", "remove it"
            )
        return coded(key, pair)
    top = max((int(part.max()) for part in pair if len(part)), default=0)
    low = min((int(part.min()) for part in pair if len(part)), default=0)
    found, count = f"labels from {low} to {top}", sum(map(len, pair))
    if class_names is not None:
        texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in class_names]
        names = tuple(checked_name(text, "class_names", "a class") for text in texts)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError("class_names", twice, "a different name for every class", "rename one of them")
        if low < 0 or top >= len(names):
            raise DataError(f"{key}_train, {key}_test", found, f"integers from 0 to {len(names) - 1}")
    else:
        # a label is a count of classes here: numbers that identify something would make as many classes
        if low < 0 or top >= count:
            raise DataError(
                f"{key}_train, {key}_test", found, f"integers from 0, below the number of samples, {count:,}",
                "if the numbers are names, make them text in both splits: y.astype(str); if they count classes, list "
                f"the classes in {remedy}",
            )  # fmt: skip
        names = tuple(map(str, range(top + 1)))
    return (pair[0].astype(np.int64), pair[1].astype(np.int64)), names


def by_name(values: Pair, names: tuple[Sequence[str], Sequence[str]], key: str) -> tuple[Pair, tuple[str, ...]]:
    """Codes of both splits with one common list of names. Each split may number its classes in its own order.

    Args:
        values: (n,) int64 codes, each into the split's own names.
        names: of train and of test.
        key: for errors.

    Returns:
        Codes, and the names: those of train in their order, then what only test has.
    """
    own = [[checked_name(name, key, "a class") for name in part] for part in names]
    joint = list(dict.fromkeys([*own[0], *own[1]]))
    place = {name: code for code, name in enumerate(joint)}
    train, test = (
        np.array([place[name] for name in part], np.int64)[codes.astype(np.int64)]
        for part, codes in zip(own, values, strict=True)
    )
    return (train, test), tuple(joint)


def test_part(members: int, wanted: int) -> int:
    """How many samples of a class, domain or set become test samples.

    At least one, and at least one is left for training, if there are enough samples."""
    return 0 if members < 2 else min(max(wanted, 1), members - 1)


def plausible(dataset: Dataset, held_out_classes: bool = False) -> Dataset:
    """The data set, with notes about classes and domains of which a split has no samples.

    If all labels are equal, they are removed: they would distinguish nothing, and every metric would be perfect.

    Args:
        dataset: of any source.
        held_out_classes: classes of the test samples are others on purpose, as in re-identification.
    """
    train, test = dataset.train, dataset.test
    notes: list[LeftOut] = []
    if train.num_classes == 1 and "label" in train.columns and "mask" not in train.columns:
        count, name = len(train) + len(test), train.class_names[0]
        fix = "add samples of another class; methods that need no labels work without them"
        notes.append(
            LeftOut("labels", count, f"all of them are {name!r}, so they do not distinguish anything", count, fix)
        )
        train, test = (
            part.with_columns({column: values for column, values in part.columns.items() if column != "label"})
            for part in (train, test)
        )
    elif not held_out_classes:
        notes += _absent("classes", train.class_names, _classes_in(train), _classes_in(test))
    if "domain" in test.columns:
        # domains without training samples are for the partition to say: it makes unseen clients of them
        notes += _absent("domains", test.domain_names, None, np.unique(test["domain"]))
    fresh = tuple(note for note in notes if note not in dataset.left_out)
    return replace(dataset, train=train, test=test, left_out=(*dataset.left_out, *fresh)) if fresh else dataset


def _absent(what: str, names: Sequence[str], trained: np.ndarray | None, tested: np.ndarray | None) -> list[LeftOut]:
    notes = []
    for found, why in (
        (trained, "no training sample is of theirs, so nothing can learn them"),
        (tested, "no test sample is of theirs, so no metric says how well they are learned"),
    ):
        missing = [] if found is None else sorted(set(range(len(names))) - set(found.tolist()))
        if missing:
            examples = tuple(names[code] for code in missing[:_EXAMPLES])
            notes.append(LeftOut(what, len(missing), why, len(names), "", examples))
    return notes


def _classes_in(samples: Samples) -> np.ndarray | None:
    """Classes that occur, None where samples have none."""
    if not samples.class_names:
        return None
    if "mask" in samples.columns:
        return np.unique(samples["mask"])
    if "tags" in samples.columns:
        return np.flatnonzero(samples["tags"].any(axis=0))
    return np.unique(samples["label"]) if "label" in samples.columns else None


def _checked(key: str, values: Pair) -> Pair:
    """Both as text, or both as whole numbers."""
    pair = np.asarray(values[0]), np.asarray(values[1])
    for split, part in zip(("train", "test"), pair, strict=True):
        if part.ndim != 1 or part.dtype.kind not in "biuU":
            found = f"shape {part.shape}, dtype {part.dtype}"
            raise DataError(f"{key}_{split}", found, "one integer or text per sample, shape (n,)", _advice(part))
    first, second = (part.astype(np.int64) if part.dtype.kind == "b" else part for part in pair)
    if (first.dtype.kind == "U") != (second.dtype.kind == "U"):
        raise DataError(f"{key}_test", f"dtype {second.dtype}", f"the kind of {key}_train: {first.dtype}")
    return first, second


def _advice(values: np.ndarray) -> str:
    if values.ndim == 2 and values.shape[1] == 1:
        return "take the column: y.ravel()"
    if values.ndim == 2:
        return "if they are one-hot: y.argmax(axis=1)"
    if values.dtype.kind == "f" and values.ndim == 1 and np.isfinite(values).all() and not (values % 1).any():
        return "the numbers are whole: y.astype('int64')"
    if values.dtype.kind == "S":
        return "decode them: numpy.char.decode(y, 'utf-8')"
    if values.dtype.kind == "O":
        return "fill the gaps if there are any, then y.astype(str) for names or y.astype('int64') for numbers"
    return "give every sample one class"
