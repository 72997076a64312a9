"""Partition steps. Each divides the training and test samples of one part among new parts.

A client's test samples follow its own training distribution: they are divided class by class in proportion to the
client's share of the training samples of that class. Test samples of a class without training samples in the part are
divided at random, in proportion to the clients' numbers of training samples. Owners and domains that have only test
samples become clients that never train. So every test sample belongs to some client, whatever the step.

flwr-datasets supplies the rules for sizes. Its other partitioners are not used, because they lose samples (shards that
do not divide evenly, classes that no client drew), give up after ten draws (Dirichlet with a small α), or build one
table per client, which is too much for a hundred thousand clients.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, Section
from fedlab.data.corruptions import CORRUPTIONS
from fedlab.data.partition.dividing import apportion, deal_classes, dirichlet_shares, equal_parts, equal_sizes, top_up
from fedlab.data.partition.matching import by_column, matched
from fedlab.data.partition.naming import Numbered
from fedlab.data.partition.partition import Split
from fedlab.data.partition.ragged import Ragged
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError, did_you_mean


class PartitionStep(ABC):
    """Base of all steps.

    Args:
        settings: an instance of the class's `Settings`.
        key: the step's configuration key, for messages.
    """

    class Settings(Section):
        """No settings."""

    corrupts: ClassVar[bool] = False
    by_site: ClassVar[bool] = False  # every part is a client with data of its own, wherever its samples are
    parts_key: ClassVar[str] = "clients"
    each_key: ClassVar[str] = ""  # the setting that asks for several samples for each part

    def __init__(self, settings: Any, key: str) -> None:
        self.settings, self.key = settings, key

    @abstractmethod
    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        """Divide one part, which `check` has accepted."""

    def split_tests(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        """Divide a part that has only test samples; most steps follow the training samples and leave it whole."""
        return Split(Ragged.joined([np.arange(len(train))]), Ragged.joined([np.arange(len(test))]), [""])

    def parts(self) -> int | None:
        """The number of parts that is asked for; None if the data determines it."""
        clients: int | None = getattr(self.settings, "clients", None)
        return clients

    def feasible(self, dataset: Dataset, train: np.ndarray) -> tuple[int, int]:
        """The smallest and the largest number of parts into which a part with these training samples can be divided."""
        return 1, len(train) // (getattr(self.settings, self.each_key) if self.each_key else 1)

    def check(self, dataset: Dataset, train: Ragged, names: Sequence[str]) -> None:
        """Refuse a step that is impossible for one of the parts `train`.

        Raises:
            DataError: the wanted number of parts is impossible; the feasible ones are named.
        """
        wanted = self.parts()
        if wanted is None:
            return
        ranges = np.array([self.feasible(dataset, train[part]) for part in range(len(train))])
        fewest, most = int(ranges[:, 0].max()), int(ranges[:, 1].min())
        if fewest <= wanted <= most:
            return
        tightest = int(ranges[:, 0].argmax() if wanted < fewest else ranges[:, 1].argmin())
        where = f" of {names[tightest]!r}" if names[tightest] else ""
        has = f"the {train.sizes[tightest]} training samples{where}"
        if fewest > most:
            each = getattr(self.settings, self.each_key, None)
            raise DataError(
                f"{self.key}.{self.each_key or self.parts_key}",
                wanted if each is None else each,
                f"{self.instead(dataset, train[tightest])}: no number of {self.parts_key} suits {has} as it is",
                "change it, or use more data",
            )
        limits = f"at most {most}" if wanted > most else f"at least {fewest}"
        fix = "lower it, or use more data" if wanted > most else "raise it"
        raise DataError(f"{self.key}.{self.parts_key}", wanted, f"{limits} for {has}", self.advice or fix)

    advice: ClassVar[str] = ""

    def instead(self, dataset: Dataset, train: np.ndarray) -> str:
        """What the setting `each_key` should be if no number of parts is feasible with its value."""
        return f"at most {len(train) // (self.parts() or 1) or len(train)}"


class Iid(PartitionStep):
    """Equal random parts."""

    class Settings(Section):
        """Settings of the IID step."""

        clients: Positive = Field(description="number of parts")

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        clients = self.settings.clients
        return Split(equal_parts(len(train), clients, rng), equal_parts(len(test), clients, rng), Numbered(clients))


class Dirichlet(PartitionStep):
    """Label skew: each class is divided by a draw from Dirichlet(α) (Hsu et al. 2019, arXiv 1909.06335).

    Clients with fewer than ``min_samples`` samples get more, one at a time from the client that then has the most. So
    the step works for every α and for every number of clients up to the number of samples.
    """

    class Settings(Section):
        """Settings of the Dirichlet step."""

        clients: Positive = Field(description="number of parts")
        alpha: float = Field(default=0.5, ge=1e-6, le=1e6, description="concentration α; small values give strong skew")
        min_samples: Positive = Field(default=1, description="smallest number of training samples of a part")

    each_key = "min_samples"

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        s = self.settings
        labels = _labels(self, dataset.train, train)
        owner = np.empty(len(train), np.int64)
        for c in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == c))
            bounds = np.floor(np.cumsum(dirichlet_shares(rng, s.alpha, s.clients)) * len(members) + 1e-9).astype(
                np.int64
            )
            owner[members] = np.minimum(np.searchsorted(bounds, np.arange(len(members)), side="right"), s.clients - 1)
        top_up(owner, s.clients, s.min_samples, rng)
        return matched(dataset, owner, s.clients, train, test, rng)


class Pathological(PartitionStep):
    """Each client holds samples of a fixed number of classes (McMahan et al. 2017's non-IID setting, by class).

    Every class is used, and all classes are held by about equally many clients, as far as they have enough samples.
    """

    class Settings(Section):
        """Settings of the pathological step."""

        clients: Positive = Field(description="number of parts")
        classes: Positive = Field(default=2, description="number of classes of each part")

    each_key = "classes"

    def feasible(self, dataset: Dataset, train: np.ndarray) -> tuple[int, int]:
        each, sizes = self.settings.classes, self._class_sizes(dataset, train)
        # k clients need k · each places, of which a class offers one for each sample and client; the surplus is
        # concave in k and 0 at 0
        most = bisect.bisect_left(
            range(1, len(train) // each + 1), True, key=lambda k: np.minimum(sizes, k).sum() < k * each
        )
        return -(-len(sizes) // each), most

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        s = self.settings
        labels = _labels(self, dataset.train, train)
        held, sizes = np.unique(labels, return_counts=True)
        holders = deal_classes(sizes, s.clients, s.classes, rng)
        owner = np.empty(len(train), np.int64)
        for c, among in zip(held, holders, strict=True):
            members = rng.permutation(np.flatnonzero(labels == c))
            owner[members] = np.repeat(among, equal_sizes(len(members), len(among)))
        return matched(dataset, owner, s.clients, train, test, rng)

    def instead(self, dataset: Dataset, train: np.ndarray) -> str:
        held = len(self._class_sizes(dataset, train))
        return f"at most {held}, the classes there are" if self.settings.classes > held else f"{held}, all the classes"

    def _class_sizes(self, dataset: Dataset, train: np.ndarray) -> np.ndarray:
        sizes = np.bincount(_labels(self, dataset.train, train))
        return sizes[sizes > 0]


class Shard(PartitionStep):
    """Samples sorted by label are cut into equal shards, and each client gets some (McMahan et al. 2017, §3)."""

    class Settings(Section):
        """Settings of the shard step."""

        clients: Positive = Field(description="number of parts")
        shards: Positive = Field(default=2, description="number of shards of each part")

    each_key = "shards"

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        s = self.settings
        labels = _labels(self, dataset.train, train)
        shuffled = rng.permutation(len(train))
        ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
        count = s.clients * s.shards
        shard_of = np.repeat(np.arange(count), equal_sizes(len(train), count))
        owner = np.empty(len(train), np.int64)
        owner[ordered] = rng.permutation(count)[shard_of] // s.shards
        return matched(dataset, owner, s.clients, train, test, rng)


class Size(PartitionStep):
    """Quantity skew: random parts whose sizes grow linearly, quadratically or exponentially (flwr-datasets)."""

    class Settings(Section):
        """Settings of the size step."""

        clients: Positive = Field(description="number of parts")
        rule: Literal["linear", "square", "exponential"] = "linear"

    advice = "lower it, choose a flatter rule, or use more data"

    def feasible(self, dataset: Dataset, train: np.ndarray) -> tuple[int, int]:
        clients = self.settings.clients
        if self._part_sizes(len(train), clients):
            return 1, clients
        # feasible counts come before infeasible ones
        candidates = range(1, min(clients, len(train) + 1))
        return 1, bisect.bisect_left(candidates, True, key=lambda k: not self._part_sizes(len(train), k))

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        clients = self.settings.clients
        sizes = self._part_sizes(len(train), clients)
        owner = np.empty(len(train), np.int64)
        owner[rng.permutation(len(train))] = np.repeat(np.arange(clients), sizes)
        return matched(dataset, owner, clients, train, test, rng)

    def _part_sizes(self, samples: int, clients: int) -> list[int]:
        """The sizes by the rule; none if some client would get no samples."""
        import datasets
        from flwr_datasets.partitioner import ExponentialPartitioner, LinearPartitioner, SquarePartitioner

        if self.settings.rule == "exponential" and clients > 700:  # beyond the range of float64
            return []
        kinds = {"linear": LinearPartitioner, "square": SquarePartitioner, "exponential": ExponentialPartitioner}
        rule = kinds[self.settings.rule](num_partitions=clients)
        rule.dataset = datasets.Dataset.from_dict({"index": np.arange(samples)})
        try:
            count = rule.num_partitions  # asking for it makes the rule work the sizes out
        except ValueError:
            return []
        return [int(rule.partition_id_to_size[part]) for part in range(count)]


class Quantity(PartitionStep):
    """Quantity skew: random parts of log-normal sizes, as measured for real clients (LEAF, arXiv 1812.01097).

    Clients with fewer than ``min_samples`` samples get more as in the step `dirichlet`, so the step works for every σ.
    """

    class Settings(Section):
        """Settings of the quantity step."""

        clients: Positive = Field(description="number of parts")
        sigma: float = Field(
            default=1.0,
            ge=0,
            le=1e6,
            description="standard deviation σ of the logarithm of the sizes; 0 gives equal sizes",
        )
        min_samples: Positive = Field(default=1, description="smallest number of training samples of a part")

    each_key = "min_samples"

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        s = self.settings
        logs = s.sigma * rng.standard_normal(s.clients)
        weights = np.exp(logs - logs.max())
        sizes = apportion(weights / weights.sum(), len(train))
        owner = rng.permutation(np.repeat(np.arange(s.clients), sizes))
        top_up(owner, s.clients, s.min_samples, rng)
        return matched(dataset, owner, s.clients, train, test, rng)


class Natural(PartitionStep):
    """One client per owner of samples, such as a writer, a site or a speaker (the column ``group`` of the data)."""

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        return _by_column(self, dataset, "group", dataset.train.group_names, train, test)

    split_tests = split


class Domain(PartitionStep):
    """One client per domain of the data."""

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        return _by_column(self, dataset, "domain", dataset.train.domain_names, train, test)

    split_tests = split


class Site(PartitionStep):
    """One client per site, which holds all samples of its own (the source `sites`)."""

    by_site = True

    def check(self, dataset: Dataset, train: Ragged, names: Sequence[str]) -> None:
        if not dataset.sites:
            fix = "give the data of each site in the source sites, or choose the step domain"
            raise DataError(f"{self.key}.name", "site", "data from sites", fix)

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        # on a node the samples of the other sites are elsewhere, so their parts are empty
        sites = dataset.sites
        parts = [
            Ragged.by_owner(samples["domain"][mine], len(sites))
            for samples, mine in ((dataset.train, train), (dataset.test, test))
        ]
        return Split(parts[0], parts[1], sites)


def known_corruptions(names: Any) -> Any:
    """Validate a list of corruptions; a text such as ``all`` is accepted as it is."""
    if isinstance(names, str):
        return names
    for name in names:
        if name not in CORRUPTIONS:
            raise ValueError(f"names of corruptions: {name!r} is not one; {did_you_mean(name, CORRUPTIONS)}")
    if not names or len(set(names)) < len(names):
        raise ValueError("at least one corruption, each at most once")
    return names


class Corruption(PartitionStep):
    """One client per image corruption, as in CIFAR-10-C (Hendrycks & Dietterich 2019)."""

    class Settings(Section):
        """Settings of the corruption step."""

        corruptions: Annotated[Literal["all"] | tuple[str, ...], AfterValidator(known_corruptions)] = Field(
            default="all", description="names of corruptions, or all for all 19"
        )
        severity: int = Field(default=3, ge=1, le=5)
        images: Literal["split", "repeat"] = Field(
            default="split",
            description="split: the images are divided among the corruptions; repeat: every corruption gets all images",
        )

    corrupts = True
    parts_key = "corruptions"

    def parts(self) -> int:
        return len(self._names())

    def feasible(self, dataset: Dataset, train: np.ndarray) -> tuple[int, int]:
        if "image" not in dataset.train.columns:
            raise DataError(f"{self.key}.name", "corruption", "image data", "remove the step")
        return 1, self.parts() if self.settings.images == "repeat" else len(train)

    def split(self, dataset: Dataset, train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> Split:
        names = self._names()
        count = len(names)
        if self.settings.images == "repeat":
            parts = [Ragged.joined([np.arange(len(part))] * count) for part in (train, test)]
        else:
            parts = [equal_parts(len(part), count, rng) for part in (train, test)]
        return Split(parts[0], parts[1], names, [(name, self.settings.severity) for name in names])

    split_tests = split

    def _names(self) -> tuple[str, ...]:
        chosen: Literal["all"] | tuple[str, ...] = self.settings.corruptions
        return CORRUPTIONS if chosen == "all" else chosen


def _by_column(
    step: PartitionStep, dataset: Dataset, column: str, names: Sequence[str], train: np.ndarray, test: np.ndarray
) -> Split:
    if column not in dataset.train.columns:
        raise DataError(
            f"{step.key}.name", type(step).__name__.lower(), f"data with a {column!r} column", "choose another step"
        )
    return by_column(dataset, column, names, train, test)


def _labels(step: PartitionStep, samples: Samples, indices: np.ndarray) -> np.ndarray:
    if "label" not in samples.columns:
        raise DataError(f"{step.key}.name", type(step).__name__.lower(), "labeled data", "choose another step")
    labels: np.ndarray = samples["label"][indices]
    return labels
