"""Random samples of the shape and kind of data that is not on this machine, so that its cost can be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedlab.data.files.captions import END_TOKENS
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator


@dataclass(frozen=True)
class Wanted:
    """What random samples are to be like, where the configuration does not say it.

    Args:
        train: number of training samples.
        test: number of test samples.
        server: number of samples in each set that the server holds.
        classes: number of classes; samples of a small draw need not have all of them.
        domains: number of domains, and of natural owners.
        held: names of the sets that the server holds, for sources that find these names on the disk.
        words: number of words of a vocabulary.
    """

    train: int = 64
    test: int = 16
    server: int = 16
    classes: int = 10
    domains: int = 4
    held: tuple[str, ...] = ()
    words: int = 49_408  # of CLIP

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(f"class {number}" for number in range(self.classes))

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains and owners."""
        return tuple(f"domain {number}" for number in range(self.domains))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words; the last one ends a caption, as in CLIP's vocabulary."""
        return (*(f"word{number}" for number in range(self.words - 1)), END_TOKENS[1])

    def of_size(self, train: int) -> Wanted:
        """The same with another number of training samples."""
        return replace(self, train=train)


class Draws:
    """Random columns of one set of samples.

    Args:
        wanted: what they are to be like.
        split: name of the set.
        count: number of samples; default: what is wanted of ``train``, of ``test``, or of a set that the server holds.
    """

    def __init__(self, wanted: Wanted, split: str, count: int | None = None) -> None:
        self._wanted, self._rng = wanted, numpy_generator(0, "stand-in", split)
        self.count = count or {"train": wanted.train, "test": wanted.test}.get(split, wanted.server)

    def pictures(self, channels: int, height: int, width: int) -> np.ndarray:
        """(n, C, H, W) uint8."""
        return self._rng.integers(0, 256, (self.count, channels, height, width), np.uint8)

    def normal(self, *shape: int) -> np.ndarray:
        """(n, …) float32, standard normal draws divided by 4, so that few lie outside [-1, 1]."""
        values: np.ndarray = self._rng.standard_normal((self.count, *shape), np.float32) / 4
        return values

    def whole(self, below: int, *shape: int, dtype: type = np.int64) -> np.ndarray:
        """(n, …) whole numbers from 0."""
        values: np.ndarray = self._rng.integers(0, below, (self.count, *shape)).astype(dtype)
        return values

    def dealt(self, kinds: int) -> np.ndarray:
        """(n,) whole numbers from 0, each as often as the others, in random order."""
        values: np.ndarray = self._rng.permutation(np.arange(self.count) % kinds).astype(np.int64)
        return values

    def captions(self, length: int, *shape: int) -> np.ndarray:
        """(n, …, L) token ids of captions that take all L places, the end included."""
        ids = self._rng.integers(1, self._wanted.words - 1, (self.count, *shape, length)).astype(np.int64)
        ids[..., -1] = self._wanted.words - 1
        return ids

    def label(self) -> np.ndarray:
        """(n,) classes."""
        return self.dealt(self._wanted.classes)


def united(
    name: str,
    wanted: Wanted,
    parts: Mapping[str, Mapping[str, np.ndarray]],
    classes: tuple[str, ...] | None = None,
    vocabulary: tuple[str, ...] = (),
) -> Dataset:
    """A data set of random columns.

    Args:
        name: of the data set.
        wanted: what it is to be like.
        parts: columns of ``train``, of ``test``, and of the sets that the server holds.
        classes: names of the classes; default: those that are wanted.
        vocabulary: the words of a text column.
    """
    names = wanted.class_names if classes is None else classes

    domains = wanted.domain_names if "domain" in parts["train"] and parts["train"]["domain"].any() else None

    def samples(columns: Mapping[str, np.ndarray]) -> Samples:
        groups = wanted.domain_names if "group" in columns else ()
        return Samples(columns, names, domains or Samples.domain_names, groups)

    ready = {split: samples(columns) for split, columns in parts.items()}
    train, test = ready.pop("train"), ready.pop("test")
    return Dataset(name, train, test, ready, vocabulary)


def loaded_or_random(source: Any, name: str, place: str, wanted: Wanted, seed: int) -> Dataset:
    """The samples of a source, or random ones if they are not on this machine.

    Args:
        source: the source.
        name: of the source.
        place: its configuration key, for errors.
        wanted: what random samples are to be like.
        seed: the run's seed.

    Raises:
        DataError: data is missing, and the source cannot say what it would be like; or what loading raises.
    """
    missing = source.missing()
    if not missing:
        dataset: Dataset = source.load(seed)
        return dataset
    if not hasattr(source, "stand_in"):
        expected = f"data on this machine, because the source {name} has no stand_in(wanted) that draws random samples"
        raise DataError(place, name, expected, missing)
    made: Dataset = source.stand_in(wanted)
    return made
