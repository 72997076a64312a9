"""Partition steps. Each divides the samples of one part among new parts, train and test alike.

A client's test samples follow its own training distribution: they are dealt out class by class in proportion to the
client's share of that class's training samples. flwr-datasets supplies the size rules; its other partitioners are not
used because they lose samples (shards that do not divide evenly, classes that no client drew), give up after ten
draws (Dirichlet with a small α) or build one table per client, which a hundred thousand clients cannot afford.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.corruptions import CORRUPTIONS
from fedlab.data.partition import Ragged, Split, class_counts
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import ConfigError, DataError, did_you_mean


class _Step:
    """Common to all steps: settings and the configuration key for messages."""

    class Settings(Section):
        """No settings."""

    def __init__(self, settings: Any, key: str) -> None:
        self.settings, self.key = settings, key

    def _need(self, clients: int, samples: int, each: int = 1) -> None:
        if clients * each > samples:
            raise DataError(
                f"{self.key}.clients",
                clients,
                f"at most {samples // each} for {samples} training samples"
                + (f" with at least {each} each" if each > 1 else ""),
                "lower it, or use more data",
            )


class Iid(_Step):
    """Equal random parts."""

    class Settings(Section):
        """Settings of the IID step."""

        clients: Positive = Field(description="parts")

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        clients = self.settings.clients
        self._need(clients, len(train))
        return Split(_equal(len(train), clients, rng), _equal(len(test), clients, rng), _numbered(clients))


class Dirichlet(_Step):
    """Label skew: each class is divided by a draw from Dirichlet(α) (Hsu et al. 2019, arXiv 1909.06335).

    Clients that end below ``min_samples`` are topped up, one sample at a time, from whoever then holds the most. So
    every α and every number of clients up to the number of samples terminates.
    """

    class Settings(Section):
        """Settings of the Dirichlet step."""

        clients: Positive = Field(description="parts")
        alpha: float = Field(default=0.5, ge=1e-6, le=1e6, description="concentration α; small is skewed")
        min_samples: Positive = Field(default=1, description="training samples every part gets at least")

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        s = self.settings
        self._need(s.clients, len(train), s.min_samples)
        labels = _labels(self, dataset.train, train)
        owner = np.empty(len(train), np.int64)
        for c in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == c))
            bounds = np.floor(np.cumsum(_proportions(rng, s.alpha, s.clients)) * len(members) + 1e-9).astype(np.int64)
            owner[members] = np.minimum(np.searchsorted(bounds, np.arange(len(members)), side="right"), s.clients - 1)
        _top_up(owner, s.clients, s.min_samples, rng)
        return _matched(self, dataset, owner, s.clients, train, test, rng)


class Pathological(_Step):
    """Each client holds samples of a fixed number of classes (McMahan et al. 2017's non-IID setting, by class).

    Classes are dealt from shuffled decks, so that every class is used and all are held by about as many clients.
    """

    class Settings(Section):
        """Settings of the pathological step."""

        clients: Positive = Field(description="parts")
        classes: Positive = Field(default=2, description="classes of each part")

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        s = self.settings
        labels = _labels(self, dataset.train, train)
        held = np.unique(labels)
        if s.classes > len(held):
            raise DataError(f"{self.key}.classes", s.classes, f"at most {len(held)}, the classes there are", "lower it")
        if s.clients * s.classes < len(held):
            fewest = -(-len(held) // s.clients)
            raise DataError(
                f"{self.key}.classes",
                s.classes,
                f"at least {fewest}: {s.clients} clients must cover {len(held)} classes",
                "raise it, or use more clients",
            )
        holders = _deal(held, s.clients, s.classes, rng)
        owner = np.empty(len(train), np.int64)
        for c in held:
            members = rng.permutation(np.flatnonzero(labels == c))
            among = holders[int(c)]
            if len(among) > len(members):
                raise DataError(
                    f"{self.key}.clients",
                    s.clients,
                    f"at most {len(members) * len(held) // s.classes}: class {dataset.train.class_names[int(c)]!r} has "
                    f"{len(members)} training samples for {len(among)} clients",
                    "lower it, or lower classes",
                )
            for client, share in zip(among, np.array_split(members, len(among)), strict=True):
                owner[share] = client
        return _matched(self, dataset, owner, s.clients, train, test, rng)


class Shard(_Step):
    """Samples sorted by label are cut into equal shards, and each client gets some (McMahan et al. 2017, §3)."""

    class Settings(Section):
        """Settings of the shard step."""

        clients: Positive = Field(description="parts")
        shards: Positive = Field(default=2, description="shards of each part")

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        s = self.settings
        self._need(s.clients, len(train), s.shards)
        labels = _labels(self, dataset.train, train)
        shuffled = rng.permutation(len(train))
        ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
        count = s.clients * s.shards
        shard_of = np.repeat(np.arange(count), _sizes(len(train), count))
        owner = np.empty(len(train), np.int64)
        owner[ordered] = rng.permutation(count)[shard_of] // s.shards
        return _matched(self, dataset, owner, s.clients, train, test, rng)


class Size(_Step):
    """Quantity skew: random parts whose sizes grow linearly, quadratically or exponentially (flwr-datasets)."""

    class Settings(Section):
        """Settings of the size step."""

        clients: Positive = Field(description="parts")
        rule: Literal["linear", "square", "exponential"] = "linear"

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        clients = self.settings.clients
        sizes = self._part_sizes(len(train), clients)
        if sizes is None:
            # feasible counts come before infeasible ones
            feasible = bisect.bisect_left(
                range(1, clients), True, key=lambda k: self._part_sizes(len(train), k) is None
            )
            raise DataError(
                f"{self.key}.clients",
                clients,
                f"at most {feasible} for {len(train)} training samples under the {self.settings.rule} rule",
                "lower it, or choose a flatter rule",
            )
        owner = np.empty(len(train), np.int64)
        owner[rng.permutation(len(train))] = np.repeat(np.arange(clients), sizes)
        return _matched(self, dataset, owner, clients, train, test, rng)

    def _part_sizes(self, samples: int, clients: int) -> list[int] | None:
        """The rule's sizes, None where some client would get nothing."""
        import datasets
        from flwr_datasets.partitioner import ExponentialPartitioner, LinearPartitioner, SquarePartitioner

        if self.settings.rule == "exponential" and clients > 700:  # beyond the range of float64
            return None
        kinds = {"linear": LinearPartitioner, "square": SquarePartitioner, "exponential": ExponentialPartitioner}
        rule = kinds[self.settings.rule](num_partitions=clients)
        rule.dataset = datasets.Dataset.from_dict({"index": np.arange(samples)})
        try:
            return [len(rule.partition_id_to_indices[part]) for part in range(clients)]
        except ValueError:
            return None


class Natural(_Step):
    """One client per natural owner: writer, site, speaker (the data's ``group`` column)."""

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        return _by_column(self, dataset, "group", dataset.train.group_names, train, test)


class Domain(_Step):
    """One client per domain of the data."""

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        return _by_column(self, dataset, "domain", dataset.train.domain_names, train, test)


class Corruption(_Step):
    """One client per image corruption, as in CIFAR-10-C (Hendrycks & Dietterich 2019)."""

    class Settings(Section):
        """Settings of the corruption step."""

        corruptions: Literal["all"] | tuple[str, ...] = Field(default="all", description="names, or all 19")
        severity: int = Field(default=3, ge=1, le=5)
        images: Literal["split", "repeat"] = Field(
            default="split", description="split: disjoint images; repeat: every corruption of every image"
        )

    def __init__(self, settings: Any, key: str) -> None:
        super().__init__(settings, key)
        for name in () if settings.corruptions == "all" else settings.corruptions:
            if name not in CORRUPTIONS:
                raise ConfigError(f"{key}.corruptions", name, "a corruption", did_you_mean(name, CORRUPTIONS))

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        if "image" not in dataset.train.columns:
            raise DataError(self.key, "corruption", "image data", "remove the step")
        s = self.settings
        names = CORRUPTIONS if s.corruptions == "all" else s.corruptions
        count = len(names)
        if s.images == "repeat":
            parts = [Ragged.joined([np.arange(len(part))] * count) for part in (train, test)]
        else:
            self._need(count, len(train))
            parts = [_equal(len(part), count, rng) for part in (train, test)]
        return Split(parts[0], parts[1], names, [(name, s.severity) for name in names])


def _by_column(
    step: _Step, dataset: Dataset, column: str, names: Sequence[str], train: np.ndarray, test: np.ndarray
) -> Split:
    if column not in dataset.train.columns:
        raise DataError(
            f"{step.key}.name", type(step).__name__.lower(), f"data with a {column!r} column", "choose another step"
        )
    held, owner = np.unique(dataset.train[column][train], return_inverse=True)
    mine = dataset.test[column][test]
    position = np.searchsorted(held, mine)
    known = (position < len(held)) & (held[np.minimum(position, len(held) - 1)] == mine)
    return Split(
        Ragged.by_owner(owner, len(held)),
        Ragged.by_owner(np.where(known, position, -1), len(held)),
        [names[int(value)] for value in held],
    )


def _matched(
    step: _Step,
    dataset: Dataset,
    owner: np.ndarray,
    clients: int,
    train: np.ndarray,
    test: np.ndarray,
    rng: np.random.Generator,
) -> Split:
    """Divide the test samples as the training samples are divided, class by class (largest remainder)."""
    parts = Ragged.by_owner(owner, clients)
    train_labels, test_labels = _labels(step, dataset.train, train), _labels(step, dataset.test, test)
    counts = class_counts(parts, train_labels, dataset.train.num_classes)
    test_owner = np.full(len(test), -1, np.int64)
    for c in np.unique(test_labels):
        members = rng.permutation(np.flatnonzero(test_labels == c))
        total = counts[:, c].sum()
        if total:
            test_owner[members] = np.repeat(np.arange(clients), _apportion(counts[:, c] / total, len(members)))
    return Split(parts, Ragged.by_owner(test_owner, clients), _numbered(clients))


def _labels(step: _Step, samples: Samples, indices: np.ndarray) -> np.ndarray:
    if "label" not in samples.columns:
        raise DataError(f"{step.key}.name", type(step).__name__.lower(), "labelled data", "choose another step")
    labels: np.ndarray = samples["label"][indices]
    return labels


def _equal(samples: int, clients: int, rng: np.random.Generator) -> Ragged:
    sizes = _sizes(samples, clients)
    return Ragged(rng.permutation(samples), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def _sizes(samples: int, parts: int) -> np.ndarray:
    return np.full(parts, samples // parts) + (np.arange(parts) < samples % parts)


def _apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Integers near ``shares * total`` that sum to `total`; ties go to the lower index."""
    exact = shares * total
    whole = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - whole), kind="stable")[: total - whole.sum()]
    whole[rest] += 1
    return whole


def _proportions(rng: np.random.Generator, alpha: float, clients: int) -> np.ndarray:
    """A Dirichlet draw that does not underflow to 0/0 for small α: normalised gamma draws, in logarithms.

    Gamma(α) = Gamma(α + 1) · U^(1/α) (Marsaglia & Tsang 2000).
    """
    logs = np.log(rng.standard_gamma(alpha + 1, clients)) + np.log1p(-rng.random(clients)) / alpha
    weights = np.exp(logs - logs.max())
    shares: np.ndarray = weights / weights.sum()
    return shares


def _top_up(owner: np.ndarray, clients: int, least: int, rng: np.random.Generator) -> None:
    sizes = np.bincount(owner, minlength=clients)
    short = np.flatnonzero(sizes < least)
    if not len(short):
        return
    needed = int((least - sizes[short]).sum())
    # what the richest can spare, richest first, is the same as taking one sample at a time from the then richest
    level = _spare_level(sizes, needed, least)
    spare = np.maximum(sizes - level, 0)
    excess = int(spare.sum()) - needed
    for client in np.flatnonzero(spare)[::-1][:excess]:
        spare[client] -= 1
    order = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    moved = np.concatenate(
        [rng.permutation(order[starts[c] : starts[c + 1]])[: spare[c]] for c in np.flatnonzero(spare)]
    )
    owner[rng.permutation(moved)] = np.repeat(short, least - sizes[short])


def _spare_level(sizes: np.ndarray, needed: int, least: int) -> int:
    """The highest size to which the rich can be cut so that at least `needed` samples become free."""
    low, high = least, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.maximum(sizes - middle, 0).sum() >= needed:
            low = middle
        else:
            high = middle - 1
    return low


def _deal(classes: np.ndarray, clients: int, each: int, rng: np.random.Generator) -> dict[int, list[int]]:
    """Clients of every class: `each` distinct classes per client, classes used as evenly as possible."""
    used = dict.fromkeys(classes.tolist(), 0)
    holders: dict[int, list[int]] = {c: [] for c in used}
    for client in range(clients):
        order = rng.permutation(classes).tolist()
        for c in sorted(order, key=lambda c: used[c])[:each]:  # stable: ties stay in shuffled order
            used[c] += 1
            holders[c].append(client)
    return holders


def _numbered(clients: int) -> list[str]:
    width = len(str(clients - 1))
    return [f"{index:0{width}d}" for index in range(clients)]
