"""The five built-in digit domains as one data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, Section
from fedlab.data.generated import digits
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator

DomainName = Literal["handwritten", "mnist", "synth", "mnistm", "svhn"]
DOMAINS: tuple[DomainName, ...] = ("handwritten", "mnist", "synth", "mnistm", "svhn")
_CHUNK = 2000  # images rendered at a time, which bounds the memory of their sampling grids


def _distinct(names: tuple[DomainName, ...]) -> tuple[DomainName, ...]:
    if not names or len(set(names)) != len(names):
        raise ValueError("at least one domain, each at most once")
    return names


class DigitsSettings(Section):
    """Settings of the digits source."""

    domains: Annotated[tuple[DomainName, ...], AfterValidator(_distinct)] = Field(
        default=DOMAINS, description="domains to use, in this order"
    )
    size: int = Field(default=28, ge=8, le=64, description="height and width in pixels")
    train_per_domain: Positive = Field(default=1000, description="training images of each domain")
    test_per_domain: Positive = Field(default=500, description="test images of each domain")
    data_seed: int = Field(
        default=0, ge=0, description="seed by which the images are drawn; independent of the run's seed"
    )


class Digits(MadeSource[DigitsSettings]):
    """Five built-in digit domains: two of real handwriting, and re-created SynthDigits, MNIST-M and SVHN (offline)."""

    Settings = DigitsSettings

    def load(self, seed: int) -> Dataset:
        settings = self.settings
        splits: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
        for name in settings.domains:
            make = {"handwritten": self._handwritten, "mnist": self._mnist, "mnistm": self._mnist}.get(name, self._made)
            for split, part in zip(splits, make(name), strict=True):
                split.append(part)

        def samples(parts: list[tuple[np.ndarray, np.ndarray]]) -> Samples:
            columns = {
                "image": np.concatenate([images for images, _ in parts]),
                "label": np.concatenate([labels for _, labels in parts]),
                "domain": np.repeat(np.arange(len(parts)), [len(labels) for _, labels in parts]),
            }
            return Samples(columns, tuple("0123456789"), settings.domains)

        return Dataset("digits", samples(splits[0]), samples(splits[1]))

    def _handwritten(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        images, labels = digits.handwritten()
        test, train = self._deal(name, labels, np.arange(len(labels)))
        return [(digits.gray_to_rgb(images[part], self.settings.size), labels[part]) for part in (train, test)]

    def _mnist(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Plain or blended MNIST digits. Each domain uses its own half, so that no digit occurs twice."""
        images, labels = digits.mnist()
        halves = digits.deal(labels, [2500, 2500], self._rng("mnist halves"))
        test, train = self._deal(name, labels, halves[0] if name == "mnist" else halves[1])
        if name == "mnist":
            return [(digits.gray_to_rgb(images[part], self.settings.size), labels[part]) for part in (train, test)]
        return [
            (
                digits.mnistm(images[part], self.settings.size, self._rng(name, split), test=split == "test"),
                labels[part],
            )
            for part, split in ((train, "train"), (test, "test"))
        ]

    def _made(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        render: Callable[..., np.ndarray] = {"synth": digits.synth, "svhn": digits.svhn}[name]
        sizes = {"train": self.settings.train_per_domain, "test": self.settings.test_per_domain}
        parts = []
        for split, count in sizes.items():
            rng = self._rng(name, split)
            labels = rng.permutation(np.arange(count) % 10)
            chunks = [labels[start : start + _CHUNK] for start in range(0, count, _CHUNK)]
            parts.append((np.concatenate([render(chunk, self.settings.size, rng) for chunk in chunks]), labels))
        return parts

    def _deal(self, name: str, labels: np.ndarray, pool: np.ndarray) -> list[np.ndarray]:
        """Balanced disjoint test and training indices out of `pool`."""
        train, test = self.settings.train_per_domain, self.settings.test_per_domain
        if train + test > len(pool):
            most_test = min(test, len(pool) - 1)
            raise DataError(
                "data.source.train_per_domain",
                f"{train} training and {test} test images",
                f"at most {len(pool)} together: domain {name!r} has no more",
                f"e.g. train_per_domain: {len(pool) - most_test} with test_per_domain: {most_test}, "
                f"or leave {name!r} out of data.source.domains",
            )
        return [pool[part] for part in digits.deal(labels[pool], [test, train], self._rng(name))]

    def _rng(self, *purpose: str) -> np.random.Generator:
        return numpy_generator(self.settings.data_seed, "digits source", *purpose)
