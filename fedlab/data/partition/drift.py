"""Temporal drift: what a client sees of its samples, as a function of the round.

Who holds which sample never changes. A drift turns the part a client holds into the part it sees in a round, with as
many training samples in every round, so a client's weight in averages is constant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Component, Positive, ProperFraction, Section
from fedlab.data.corruptions import CORRUPTIONS
from fedlab.data.partition.dividing import apportion, dirichlet_shares, fill
from fedlab.data.partition.partition import ClientPart, Partition
from fedlab.data.partition.steps import known_corruptions
from fedlab.data.samples import Dataset
from fedlab.errors import ConfigError, DataError
from fedlab.registry import Registry

DRIFTS = Registry(
    "drift",
    {"labels": "fedlab.data.partition.drift:LabelDrift", "corruption": "fedlab.data.partition.drift:CorruptionDrift"},
    "fedlab.drifts",
)

Split = Literal["train", "test"]


class Drift(ABC):
    """Base of all drifts.

    Args:
        settings: an instance of the class's `Settings`.
        key: the drift's configuration key, for messages.
    """

    class Settings(Section):
        """Settings of all drifts."""

        rounds: Positive = Field(description="number of rounds from the first distribution to the last")
        begin: Positive = Field(default=1, description="last round that has the first distribution")
        test: Literal["follow", "stay"] = Field(
            default="follow",
            description="follow: test samples drift like the training samples; stay: they remain as in the first round",
        )

    def __init__(self, settings: Any, key: str) -> None:
        self.settings, self.key = settings, key

    def stage(self, round: int, split: Split) -> float:
        """Progress of the drift in a round, from 0 to 1; rounds of equal progress have equal data."""
        s = self.settings
        if split == "test" and s.test == "stay":
            return 0.0
        return float(min(max((round - s.begin) / s.rounds, 0.0), 1.0))

    @abstractmethod
    def check(self, dataset: Dataset, parts: Partition) -> None:
        """Refuse data or a partition that does not allow this drift.

        Raises:
            DataError: says what is missing.
        """

    @abstractmethod
    def at(self, stage: float, part: ClientPart, client: int, dataset: Dataset, rng: np.random.Generator) -> ClientPart:
        """The part a client sees.

        Args:
            stage: of this drift.
            part: what the client holds, or sees after the drift before this one.
            client: its id.
            dataset: the samples.
            rng: begins alike for a client in every round.
        """


class LabelDrift(Drift):
    """A client's label mix moves from one draw of Dirichlet(α) to another.

    In every round a ``share`` of the client's samples is active, and the classes among them have the shares of the
    interpolated mix. If a class has too few samples, all of them are active, and the other classes have more in
    proportion. When the mix changes, as few samples as possible are exchanged.
    """

    class Settings(Drift.Settings):
        """Settings of drifting labels."""

        alpha: float = Field(
            default=0.5,
            ge=1e-6,
            le=1e6,
            description="concentration α from which both label mixes are drawn; small values give strong skew",
        )
        share: ProperFraction = Field(default=0.25, description="share of its samples that a client sees in one round")

    def check(self, dataset: Dataset, parts: Partition) -> None:
        if "label" not in dataset.train.columns:
            raise DataError(f"{self.key}.name", "labels", "labeled data", "remove the drift")

    def at(self, stage: float, part: ClientPart, client: int, dataset: Dataset, rng: np.random.Generator) -> ClientPart:
        labels = dataset.train["label"][part.train]
        mixes = np.zeros((2, dataset.train.num_classes))
        held = np.unique(labels if len(labels) else dataset.test["label"][part.test])
        if not len(held):
            return part
        for mix in mixes:
            mix[held] = dirichlet_shares(rng, self.settings.alpha, len(held))
        return replace(
            part,
            train=part.train[self._active(labels, mixes, stage, rng)],
            test=part.test[self._active(dataset.test["label"][part.test], mixes, stage, rng)],
        )

    def _active(self, labels: np.ndarray, mixes: np.ndarray, stage: float, rng: np.random.Generator) -> np.ndarray:
        """Positions of the active samples, ascending."""
        shuffled = rng.permutation(len(labels))
        if not len(labels):
            return shuffled
        active = max(1, round(self.settings.share * len(labels)))
        sizes = np.bincount(labels, minlength=mixes.shape[1])
        first, last = (fill(mix, active, sizes) for mix in mixes)
        # between two mixes the pool can provide, so that it can provide this one too
        counts = apportion(((1 - stage) * first + stage * last) / active, active)
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.sort(by_class[rank < np.repeat(counts, sizes)])


class CorruptionDrift(Drift):
    """The severity of a client's image corruption rises or falls; severity 0 is the clean image."""

    class Settings(Drift.Settings):
        """Settings of drifting corruption."""

        corruptions: Annotated[Literal["own", "all"] | tuple[str, ...], AfterValidator(known_corruptions)] = Field(
            default="own",
            description="own: the corruption that the partition step gave to the client; names, or all for all 19: "
            "given to the clients in turn",
        )
        start: int = Field(default=0, ge=0, le=5, description="severity of the first distribution")
        end: int = Field(default=5, ge=0, le=5, description="severity of the last distribution")

    def check(self, dataset: Dataset, parts: Partition) -> None:
        if "image" not in dataset.train.columns:
            raise DataError(f"{self.key}.name", "corruption", "image data", "remove the drift")
        own = self.settings.corruptions == "own"
        corrupted = any(corruption is not None for corruption in parts.corruptions)
        if own and not corrupted:
            fix = f"add one, or set {self.key}.corruptions"
            raise DataError(
                f"{self.key}.corruptions",
                "own",
                "a corruption step in data.partition, which gives every client a corruption",
                fix,
            )
        if corrupted and not own:
            fix = "set it to own, or remove the step"
            raise DataError(
                f"{self.key}.corruptions",
                self.settings.corruptions,
                "own, because data.partition has a corruption step",
                fix,
            )

    def stage(self, round: int, split: Split) -> float:
        s = self.settings
        return float(int(s.start + (s.end - s.start) * super().stage(round, split) + 0.5))

    def at(self, stage: float, part: ClientPart, client: int, dataset: Dataset, rng: np.random.Generator) -> ClientPart:
        chosen = self.settings.corruptions
        names = CORRUPTIONS if chosen == "all" else chosen
        name = part.corruption[0] if part.corruption is not None else names[client % len(names)]
        return replace(part, corruption=(name, int(stage)) if stage else None)


def make_drifts(drifts: Sequence[Component]) -> list[Drift]:
    """The drifts, their settings validated.

    Raises:
        ConfigError, ConfigErrors: unknown drift or setting, or one named twice.
    """
    made: list[Drift] = []
    for index, drift in enumerate(drifts):
        key = f"data.drift.{index}"
        found, settings = DRIFTS.configured(drift, key)
        if any(type(other) is found for other in made):
            raise ConfigError(f"{key}.name", drift.name, "every drift at most once", "remove the others")
        made.append(found(settings, key))
    return made
