"""Divides the samples among the clients, as a pure function of data, partition steps and seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from fedlab.config import Component
from fedlab.data.partition.naming import Joined, Prefixed, Repeated
from fedlab.data.partition.ragged import Ragged
from fedlab.data.partition.skew import skew_figures
from fedlab.data.partition.strays import homes
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import ConfigError, DataError
from fedlab.registry import Registry
from fedlab.seeding import numpy_generator

PARTITIONERS = Registry(
    "partition step",
    {
        name: f"fedlab.data.partition.steps:{name.title()}"
        for name in (
            "iid",
            "dirichlet",
            "pathological",
            "shard",
            "size",
            "quantity",
            "natural",
            "domain",
            "corruption",
            "site",
        )
    },
    "fedlab.partitioners",
)


_MOST_LISTED = 1000


@dataclass(frozen=True)
class ClientPart:
    """The samples of one client.

    Args:
        name: unique and readable, ``mnist`` or ``fog-2``.
        train: ascending indices into the train samples.
        test: ascending indices into the test samples.
        corruption: (name, severity) applied to the client's images, or None.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    corruption: tuple[str, int] | None = None


@dataclass(frozen=True)
class Split:
    """How a step divides one part.

    Args:
        train: positions within the part's train samples, one list per new part.
        test: the same for its test samples.
        names: names of the new parts.
        corruptions: (name, severity) of each new part, where the step corrupts.
        values: for steps that divide by owner or domain: the owner's or the domain's code of each new part.

    Parts without training samples never train; `partition` says what happens to their test samples.
    """

    train: Ragged
    test: Ragged
    names: Sequence[str]
    corruptions: Sequence[tuple[str, int]] | None = None
    values: Sequence[int] | None = None


class Partition(Sequence[ClientPart]):
    """All clients' parts, stored compactly and built on access.

    Args:
        train: train indices by client.
        test: test indices by client.
        names: one per client.
        corruptions: one per client.
        fingerprint: hash of data, steps and seed.
    """

    def __init__(
        self,
        train: Ragged,
        test: Ragged,
        names: Sequence[str],
        corruptions: Sequence[tuple[str, int] | None],
        fingerprint: str,
    ) -> None:
        self.train, self.test, self.names, self.corruptions = train, test, names, corruptions
        self.fingerprint = fingerprint

    def without_tests(self, clients: np.ndarray) -> Partition:
        """A copy in which `clients` have no test samples."""
        return Partition(self.train, self.test.emptied(clients), self.names, self.corruptions, self.fingerprint)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> ClientPart: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClientPart]: ...
    def __getitem__(self, index: int | slice) -> ClientPart | list[ClientPart]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        i = index % len(self)
        return ClientPart(self.names[i], np.sort(self.train[i]), np.sort(self.test[i]), self.corruptions[i])


@dataclass(frozen=True)
class Steps:
    """The steps of a partition, ready to be taken one after the other.

    Args:
        made: the steps.
        described: their names and settings as JSON, without settings that are defaults.
    """

    made: tuple[Any, ...]
    described: str

    @property
    def by_site(self) -> bool:
        """Whether every client is a site that knows no samples but its own."""
        return any(getattr(step, "by_site", False) for step in self.made)


def make_steps(steps: Sequence[Component]) -> Steps:
    """The partition steps, their settings validated.

    Raises:
        ConfigError, ConfigErrors: unknown step or setting.
    """
    made: list[Any] = []
    described = []
    for index, step in enumerate(steps):
        key = f"data.partition.{index}"
        found, settings = PARTITIONERS.configured(step, key)
        made.append(found(settings, key))
        described.append({"name": step.name, **settings.model_dump(mode="json", exclude_defaults=True)})
        if getattr(found, "corrupts", False) and sum(getattr(other, "corrupts", False) for other in made) > 1:
            raise ConfigError(f"{key}.name", step.name, "one corruption step at most", "remove the others")
    found = Steps(tuple(made), json.dumps(described, sort_keys=True))
    if found.by_site and len(made) > 1:
        named = ", ".join(step.name for step in steps)
        expected = "site as the only step, because a site holds all of its own samples as one client"
        raise ConfigError("data.partition", named, expected, "remove the other steps; data.drift still makes changes")
    return found


def partition(dataset: Dataset, steps: Steps, seed: int) -> Partition:
    """Apply `steps` one after the other; each divides every part that the step before it made.

    Every test sample belongs to some client. If an owner or a domain has no training samples in a part, its test
    samples there go to clients of that owner or domain in other parts. If there are none, they make a client that
    never trains. Such clients come after all others, so the numbers and the draws of those that train do not depend
    on them.

    Raises:
        DataError: a step cannot be carried out, and the largest feasible value is named; or two clients would have one
            name.
    """
    identity = f"{dataset.fingerprint}{steps.described}{seed}"
    fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    train = Ragged.joined([np.arange(len(dataset.train))])
    test = Ragged.joined([np.arange(len(dataset.test))])
    names: Sequence[str] = [""]
    corruptions: Sequence[tuple[str, int] | None] = [None]
    owners: Sequence[tuple[int, ...]] = [()]
    for depth, step in enumerate(steps.made):
        trained = int(np.count_nonzero(train.sizes)) if depth else 1
        step.check(dataset, train.of(np.arange(trained)), names[:trained])
        trains, tests = [], []
        parts_names: list[Sequence[str]] = []
        parts_corruptions: list[Sequence[tuple[str, int] | None]] = []
        parts_owners: list[Sequence[tuple[int, ...]]] = []
        for part in range(len(names)):
            generator = numpy_generator(seed, "partition", depth, part)
            mine_train, mine_test = train[part], test[part]
            divide = step.split if part < trained else step.split_tests
            split: Split = divide(dataset, mine_train, mine_test, generator)
            trains.append(Ragged(mine_train[split.train.order], split.train.offsets))
            tests.append(Ragged(mine_test[split.test.order], split.test.offsets))
            parts_names.append(_prefixed(names[part], split.names))
            parts_corruptions.append(split.corruptions or Repeated(corruptions[part], len(split.names)))
            mine = owners[part]
            parts_owners.append(
                Repeated(mine, len(split.names)) if split.values is None else [(*mine, value) for value in split.values]
            )
        train, test = _concatenate(trains), _concatenate(tests)
        names, corruptions, owners = Joined.of(parts_names), Joined.of(parts_corruptions), Joined.of(parts_owners)
        if not train.sizes.all() and not steps.by_site:  # parts of other sites are empty here, and stay clients
            test, kept = homes(train, test, owners, numpy_generator(seed, "partition", depth, "strays"))
            train, test = train.of(kept), test.of(kept)
            names, corruptions, owners = ([found[place] for place in kept] for found in (names, corruptions, owners))
            check_names(step.key, names)
    if list(names[:2]) == [""]:
        names = ["all"]
    return Partition(train, test, names, corruptions, fingerprint)


def summary(parts: Partition, dataset: Dataset, unseen: Collection[int] = ()) -> dict[str, Any]:
    """Counts by client, class and domain, and figures of the skew, as plain values for charts, tables and the report.

    If there are more than 1,000 clients, 1,000 of them are listed, evenly spaced by id, and ``registered`` is the
    number of all. The skew figures cover all clients that train. A client without training samples has the ``domain``
    of its test samples.

    Args:
        parts: the clients' parts.
        dataset: the samples.
        unseen: clients that never train.
    """
    classes = list(dataset.train.class_names) if "label" in dataset.train.columns else ["unlabeled"]
    train, test = (
        class_counts(part, labels_or_zero(samples), len(classes))
        for part, samples in ((parts.train, dataset.train), (parts.test, dataset.test))
    )
    domains = dataset.train.columns.get("domain", np.zeros(len(dataset.train), np.int64))
    by_domain = class_counts(parts.train, domains, len(dataset.train.domain_names))
    tested = dataset.test.columns.get("domain", np.zeros(len(dataset.test), np.int64))
    clients = []
    for index in map(int, np.linspace(0, len(parts) - 1, min(len(parts), _MOST_LISTED))):
        held = np.flatnonzero(by_domain[index])
        if not parts.train.size(index):
            held = np.unique(tested[parts.test[index]])
        clients.append(
            {
                "name": parts.names[index],
                "domain": dataset.train.domain_names[int(held[0])] if len(held) == 1 else "mixed",
                "corruption": described(parts.corruptions[index]),
                "unseen": index in unseen,
                "train": train[index].tolist(),
                "test": test[index].tolist(),
                "domains": by_domain[index].tolist(),
            }
        )
    names = list(dataset.train.domain_names)
    training = np.setdiff1d(np.arange(len(parts)), np.fromiter(unseen, np.int64, len(unseen)))
    return {
        "classes": classes,
        "domains": names,
        "clients": clients,
        "registered": len(parts),
        "skew": skew_figures(train[training] if len(training) else train),
    }


def described(corruption: tuple[str, int] | None) -> str:
    """A corruption as text, ``fog 3``; "" if there is none."""
    return f"{corruption[0]} {corruption[1]}" if corruption else ""


def labels_or_zero(samples: Samples) -> np.ndarray:
    """The labels; where there are none all samples count as one class."""
    return samples.columns["label"] if "label" in samples.columns else np.zeros(len(samples), np.int64)


def class_counts(parts: Ragged, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Samples by client and class, (clients, classes)."""
    owner = np.repeat(np.arange(len(parts)), parts.sizes)
    held = labels[parts.order[parts.offsets[0] : parts.offsets[-1]]]
    flat = np.bincount(owner * num_classes + held, minlength=len(parts) * num_classes)
    return flat.reshape(len(parts), num_classes)


def _concatenate(parts: Sequence[Ragged]) -> Ragged:
    orders = [part.order[part.offsets[0] : part.offsets[-1]] for part in parts]
    sizes = np.concatenate([part.sizes for part in parts])
    return Ragged(np.concatenate(orders), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def _prefixed(prefix: str, names: Sequence[str]) -> Sequence[str]:
    """The names of new parts, with the name of the divided part in front unless one of the two says nothing."""
    if not prefix or (len(names) == 1 and not names[0]):
        return names if not prefix else [prefix]
    return Prefixed(prefix, names)


def check_names(key: str, names: Sequence[str]) -> None:
    """Refuse two clients with the same name, because results are listed by name.

    Raises:
        DataError: a name that occurs twice.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(key, twice, "clients with different names", "rename owners or domains in the data")
