"""Samples that were given in Python. A run cannot load them again, so it records their name, sizes and fingerprint."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from fedlab.config import Component, Section
from fedlab.data.samples import Dataset
from fedlab.errors import DataError
from fedlab.registry import GIVEN as GIVEN

_HOW = "give it again in Python: fedlab.run(config, data=…) or fedlab.resume(run, data=…)"


class GivenSettings(Section):
    """Description of the samples; if nothing is set, any samples are accepted."""

    dataset: str | None = Field(default=None, description="name of the data set")
    fingerprint: str | None = Field(
        default=None, description="hash of all its samples; data with another hash is refused"
    )
    train: int | None = Field(default=None, ge=0, description="number of training samples")
    test: int | None = Field(default=None, ge=0, description="number of test samples")
    server: dict[str, int] = Field(default={}, description="numbers of samples that the server holds, by name")


class Given:
    """Samples given in Python with ``fedlab.run(config, data=…)``, of which a run records a description."""

    Settings: ClassVar[type[Section]] = GivenSettings

    def __init__(self, settings: GivenSettings) -> None:
        self.settings = settings

    def missing(self) -> str | None:
        return f"this data was given in Python: {self._described()}; {_HOW}"

    def load(self, seed: int) -> Dataset:
        raise DataError("data.source", self._described(), "the data itself, which was given in Python", _HOW)

    def check(self, dataset: Dataset) -> None:
        """Refuse other samples than these.

        Raises:
            DataError: their fingerprints differ.
        """
        s = self.settings
        if s.fingerprint is not None and s.fingerprint != dataset.fingerprint:
            raise DataError(
                "data",
                f"{dataset.name}, fingerprint {dataset.fingerprint}",
                f"the data of this configuration, which is {self._described()}",
                "give that data, or set data.source=given, which takes any and begins a new run",
            )

    def _described(self) -> str:
        s = self.settings
        if s.fingerprint is None:
            return "any"
        return f"{s.dataset!r}, {s.train} training and {s.test} test samples, fingerprint {s.fingerprint}"


def described(dataset: Dataset) -> Component:
    """The data source of a run whose samples were given."""
    return Component(
        name=GIVEN,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        train=len(dataset.train),
        test=len(dataset.test),
        server={name: len(samples) for name, samples in sorted(dataset.server.items())},
    )
