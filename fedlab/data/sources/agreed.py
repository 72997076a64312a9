"""Makes the data sets of several sites one kind of data: the agreed classes, columns and vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlab.data.files.spelling import one_form
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut

_CODED = ("label", "mask")  # columns of class codes; a negative code means unlabeled
_LABELED = ("label", "mask", "tags")


@dataclass(frozen=True)
class Agreement:
    """What the data of all sites must have in common.

    Args:
        classes: names of the classes, in the order of their codes; None for data without classes.
        columns: shape of a sample by column; empty if the shapes are not given.
        vocabulary: the words that the numbers of a text column stand for, or their `vocabulary_hash`; None if they are
            not given.
        key: configuration key below which they are written, for errors.
    """

    classes: tuple[str, ...] | None
    columns: Mapping[str, tuple[int, ...]]
    vocabulary: tuple[str, ...] | str | None
    key: str = "data.source"

    def applied(self, dataset: Dataset, place: str) -> Dataset:
        """A site's data set with the agreed classes, and with an owner for every sample.

        Sets that the source keeps for the server are left out and counted, because a site's samples stay on the site.

        Args:
            dataset: as the site's own source delivers it.
            place: configuration key of that source, for errors.

        Raises:
            DataError: it contradicts what was agreed, or has no training or no test samples.
        """
        for split, samples in (("train", dataset.train), ("test", dataset.test)):
            if not len(samples):
                raise DataError(place, dataset.name, f"at least one {split} sample", "check the settings of the source")
        self._check_vocabulary(dataset, place)
        dataset = _with_labels(dataset)
        train, test = (self._recoded(samples, place) for samples in (dataset.train, dataset.test))
        self._check_columns(train, place)
        left_out = (*dataset.left_out, *_kept_back(dataset))
        return replace(dataset, train=_owned(train), test=_owned(test), server={}, left_out=left_out)

    def _recoded(self, samples: Samples, place: str) -> Samples:
        labeled = [column for column in _LABELED if column in samples.columns]
        if self.classes is None:
            if labeled:
                expected = "the names of the classes, because the sites' samples are labeled"
                raise DataError(f"{self.key}.classes", None, expected, f"list them: {', '.join(samples.class_names)}")
            return samples
        if not labeled:
            expected = f"labeled samples, because {self.key}.classes names classes"
            raise DataError(place, f"columns {sorted(samples.columns)}", expected, "add labels, or remove the classes")
        strange = other_classes(samples, self.classes)
        if strange:
            raise DataError(
                place, f"samples of {_named(strange, 'class', 'classes')}",
                f"samples of the agreed classes only: {', '.join(self.classes)}",
                f"remove these samples or give them a class of the list, or add the class to {self.key}.classes",
            )  # fmt: skip
        return recoded(samples, self.classes)

    def _check_columns(self, samples: Samples, place: str) -> None:
        if not self.columns:
            return
        # annotations of one number each need not be written down
        shapes = {
            name: values.shape[1:]
            for name, values in samples.columns.items()
            if name not in ("domain", "group") and (name in self.columns or values.shape[1:])
        }
        for name, shape in shapes.items():
            wanted = self.columns.get(name)
            if wanted is None:
                expected = f"only the columns of {self.key}.columns: {', '.join(self.columns)}"
                raise DataError(
                    place, f"column {name!r} of shape {list(shape)}", expected, "change the source or add it"
                )
            if tuple(wanted) != tuple(shape):
                fix = f"change the settings of the source, such as size and channels, or {self.key}.columns for all"
                raise DataError(
                    place, f"{name} of shape {list(shape)}", f"{list(wanted)}, as {self.key}.columns says", fix
                )
        for name in self.columns:
            if name not in shapes:
                expected = f"a column {name!r}, as {self.key}.columns says"
                raise DataError(place, f"columns {sorted(samples.columns)}", expected, "choose another source")

    def _check_vocabulary(self, dataset: Dataset, place: str) -> None:
        wanted = self.vocabulary
        if wanted is None:
            return
        ours = dataset.vocabulary
        if vocabulary_hash(ours) != (wanted if isinstance(wanted, str) else vocabulary_hash(wanted)):
            raise DataError(
                place, f"a vocabulary of {len(ours):,} words, hash {vocabulary_hash(ours)}",
                f"the words of {self.key}.vocabulary" + (f", hash {wanted}" if isinstance(wanted, str) else ""),
                "use the same tokenizer on all sites",
            )  # fmt: skip


def vocabulary_hash(words: Sequence[str]) -> str:
    """A short hash of a vocabulary, by which sites can agree on a tokenizer of many words."""
    return hashlib.blake2b(repr(tuple(words)).encode(), digest_size=8).hexdigest()


def joint_classes(parts: Iterable[Samples]) -> tuple[str, ...] | None:
    """The classes of several data sets: their common list, or else all their names, sorted; None without labels."""
    lists = [tuple(map(one_form, part.class_names)) for part in parts if any(name in part.columns for name in _LABELED)]
    if not lists:
        return None
    return lists[0] if len(set(lists)) == 1 else tuple(sorted(set().union(*lists)))


def other_classes(samples: Samples, classes: Sequence[str]) -> list[str]:
    """Names of the classes of some samples that are not among `classes`."""
    names = [one_form(name) for name in samples.class_names]
    known = {one_form(name) for name in classes}
    used = _used(samples)
    return [name for code, name in enumerate(names) if code in used and name not in known]


def recoded(samples: Samples, classes: Sequence[str]) -> Samples:
    """Samples whose class codes stand for `classes`; all classes of the samples must be among them."""
    place = {one_form(name): code for code, name in enumerate(classes)}
    codes = np.array([place.get(one_form(name), -1) for name in samples.class_names], np.int64)
    columns = dict(samples.columns)
    for column in _CODED:
        if column in columns and len(codes):
            values = columns[column]
            columns[column] = np.where(values < 0, values, codes[np.maximum(values, 0)]).astype(values.dtype)
    if "tags" in columns:
        tags = columns["tags"]
        columns["tags"] = np.zeros((len(tags), len(classes)), tags.dtype)
        columns["tags"][:, codes[codes >= 0]] = tags[:, codes >= 0]
    return Samples(columns, tuple(classes), samples.domain_names, samples.group_names, check=False)


def _used(samples: Samples) -> set[int]:
    """Codes of the classes that occur."""
    found: set[int] = set()
    for column in _CODED:
        if column in samples.columns:
            found |= set(np.unique(samples[column]).tolist())
    if "tags" in samples.columns:
        found |= set(np.flatnonzero(samples["tags"].any(axis=0)).tolist())
    return found


def _with_labels(dataset: Dataset) -> Dataset:
    """The data set with the labels that `fedlab.data.classes.plausible` removes where all are equal.

    A site may have samples of one class only; among the other sites' samples that class distinguishes them.
    """
    lacking = dataset.train.num_classes == 1 and not any(name in dataset.train.columns for name in _LABELED)
    if not lacking or not any(left.what == "labels" for left in dataset.left_out):
        return dataset
    train, test = (
        part.with_columns({**part.columns, "label": np.zeros(len(part), np.int64)})
        for part in (dataset.train, dataset.test)
    )
    kept = tuple(left for left in dataset.left_out if left.what != "labels")
    return replace(dataset, train=train, test=test, left_out=kept)


def _owned(samples: Samples) -> Samples:
    """Samples with an owner each: the site as a whole where the source names no owners."""
    if "group" in samples.columns:
        return samples
    columns = {**samples.columns, "group": np.zeros(len(samples), np.int64)}
    return replace(samples, columns=columns, group_names=("all",))


def _kept_back(dataset: Dataset) -> tuple[LeftOut, ...]:
    """The samples of sets that a site's source keeps for the server."""
    count = sum(map(len, dataset.server.values()))
    if not count:
        return ()
    names = ", ".join(sorted(dataset.server))
    why = f"the source keeps them for the server ({names}), and a site's samples stay on the site"
    return (LeftOut("samples", count, why, fix="give the server samples of its own with data.source.server"),)


def _named(names: Sequence[str], one: str, several: str) -> str:
    return f"the {one if len(names) == 1 else several} {', '.join(map(repr, names[:5]))}{', …' * (len(names) > 5)}"
