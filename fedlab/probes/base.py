"""The interface that every probe implements.

A probe measures what frozen features contain: it fits something simple on the features of one set of samples, and
scores it on those of another. FedLab computes the features and calls `Probe.run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, cast

import numpy as np
from pydantic import Field
from typing_extensions import TypeVar

from fedlab.config import Section
from fedlab.errors import DataError

SCORE = "score"
"""Name of the main value among those that `Probe.run` returns; the metric has the name of the probe alone."""


class ProbeSettings(Section):
    """Settings of all probes. The settings of a probe are a subclass."""

    fit: str | None = Field(
        default="probe", description="set of samples on whose features the probe is fitted; never a test set"
    )
    test: str = Field(default="test", description="set of samples on whose features the probe is scored")
    label: str = Field(default="label", description="column with the labels")
    part: str | None = Field(
        default=None, description="part of the method whose features are probed; default: the method's first"
    )
    suffix: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="end of the metric's name; default: what distinguishes probes of the same name",
    )


S = TypeVar("S", bound=ProbeSettings, default=Any)


@dataclass(frozen=True)
class Probed:
    """A set of samples with its features, as a probe sees it.

    Args:
        name: of the set.
        vectors: features of the samples, (n, D), float32.
        labels: the column that the setting ``label`` names, such as classes (n,), truth values (n, K) or masks
            (n, H, W).
        tokens: vectors of places in each sample, (n, T, D), only for probes that need them.
        grid: rows and columns of these places.
        columns: all other columns of the samples, by name.
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray | None = None
    grid: tuple[int, int] | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)


class Probe(ABC, Generic[S]):
    """Base class of all probes. The first line of the docstring is the probe's entry in ``fedlab list probes``.

    Args:
        settings: an instance of the class's `Settings`.
    """

    Settings: ClassVar[type[ProbeSettings]] = ProbeSettings

    needs: ClassVar[Literal["vectors", "tokens"]] = "vectors"
    """Which features the probe looks at. The method must have them."""
    fits: ClassVar[bool] = True
    """Whether the probe must have a set to fit on. Otherwise the setting ``fit`` may be null."""

    def __init__(self, settings: S | None = None) -> None:
        self.settings: S = settings if settings is not None else cast(S, self.Settings())

    @abstractmethod
    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        """Fit on one set and score on the other.

        Nothing may be chosen with the help of `test`.

        Args:
            fit: the set to fit on; None if the setting ``fit`` is null.
            test: the set to score on.
            rng: for random choices; equal in every evaluation of a run.

        Returns:
            Values by name. ``score`` is the main one, whose metric is called ``probe_`` and the name of the probe. The
            metrics of the others have their name appended.
        """

    def check(self, fit: Labels | None, test: Labels) -> None:
        """Refuse samples with which the probe can measure nothing. By default nothing is refused.

        Args:
            fit: name of the set to fit on, and its labels.
            test: likewise.

        Raises:
            DataError: what is missing.
        """


class MergeableSettings(ProbeSettings):
    """Settings of all probes of which clients send only sums."""

    on: Literal["clients", "server"] = Field(
        default="clients",
        description="clients: fitted to the clients' own training samples (fit: train) or validation samples (fit: "
        "validation) and scored on their test samples; server: on sets that the server holds",
    )
    fit: str | None = Field(
        default="train", description="samples on whose features the probe is fitted; never test samples"
    )


M = TypeVar("M", bound=MergeableSettings, default=Any)


class MergeableProbe(Probe[M]):
    """A probe of which clients send only sums, so that it needs no samples on the server.

    With ``on: clients`` every client makes `sums` of the features of its own samples, the server adds them up and
    calls `solve`, and the clients count with its result what `count` counts on their test samples.
    """

    @property
    def on_clients(self) -> bool:
        """Whether the clients' own samples are used."""
        return self.settings.on == "clients"

    @abstractmethod
    def sums(self, fit: Probed, num_classes: int) -> dict[str, np.ndarray]:
        """Sums over samples, by name, which are added up over the clients."""

    @abstractmethod
    def solve(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is fitted, computed from the sums over all clients."""

    @abstractmethod
    def count(self, solution: Mapping[str, np.ndarray], test: Probed) -> dict[str, np.ndarray]:
        """Sums over test samples, by name, which are added up over the clients."""

    @abstractmethod
    def values(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Values by name, as `Probe.run` returns them, from the counts of one client or of several; none for none."""


@dataclass(frozen=True)
class Labels:
    """The labels of a set of samples.

    Args:
        name: of the set.
        values: as in `Probed`.
    """

    name: str
    values: np.ndarray


def check_classes(labels: Labels, several: bool = False) -> None:
    """Refuse labels that no classifier can be fitted to.

    Args:
        labels: of the set to fit on.
        several: whether a sample may have several classes, which are then given as truth values (n, K).

    Raises:
        DataError: they are no classes, or all samples are of one class.
    """
    shape, kind = labels.values.shape, labels.values.dtype.kind
    if not (kind in "iub" and (labels.values.ndim == 1 or (several and labels.values.ndim == 2))):
        expected = "whole numbers of shape (n,)" + (", or truth values of shape (n, K)" if several else "")
        fix = "choose another column with label, or another probe"
        raise DataError(f"labels of set {labels.name!r}", f"{labels.values.dtype} of shape {shape}", expected, fix)
    if len(np.unique(labels.values, axis=0)) < 2:
        fix = "label samples of other classes too, or hold out more samples"
        raise DataError(f"set {labels.name!r}", "samples of one class", "samples of at least two classes", fix)
