"""Several sources as one federated data set, one domain each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from pydantic import Field

from fedlab.config import ComponentField, Section
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import Source, build_source
from fedlab.data.sources.joining import check_alike, join, left_out_of, load_part, missing_parts, warnings_of
from fedlab.data.stand_in import Wanted, loaded_or_random
from fedlab.errors import DataError

_PLACE = "data.source.sources"


class UnionSettings(Section):
    """Settings of the union source."""

    sources: dict[str, ComponentField] = Field(
        min_length=1, description="name of the domain → source; all need the same image shape and number of classes"
    )


class Union:
    """Several data sources in one data set; each of them is one domain."""

    Settings = UnionSettings

    def __init__(self, settings: UnionSettings) -> None:
        self.parts: dict[str, Source] = {
            name: build_source(component, f"{_PLACE}.{name}") for name, component in settings.sources.items()
        }

    @property
    def held_out_classes(self) -> bool:
        return any(getattr(source, "held_out_classes", False) for source in self.parts.values())

    def missing(self) -> str | None:
        return missing_parts(self.parts, _PLACE)

    def load(self, seed: int) -> Dataset:
        return _united({name: load_part(source, f"{_PLACE}.{name}", seed) for name, source in self.parts.items()})

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random samples instead of those that are not here; what is here is loaded."""
        parts = self.parts.items()
        return _united({name: loaded_or_random(part, name, f"{_PLACE}.{name}", wanted, 0) for name, part in parts})


def _united(datasets: Mapping[str, Dataset]) -> Dataset:
    first_name, first = next(iter(datasets.items()))
    for name, dataset in datasets.items():
        key = f"{_PLACE}.{name}"
        check_alike(key, dataset, first_name, first)
        if dataset.train.num_classes != first.train.num_classes:
            raise DataError(
                key,
                f"{dataset.train.num_classes} classes",
                f"{first.train.num_classes}, as in {first_name!r}",
                "sources of one union need the same classes in the same order",
            )
    server = {
        f"{name}/{held}": _of_domain(index, samples, tuple(datasets))
        for index, (name, dataset) in enumerate(datasets.items())
        for held, samples in dataset.server.items()
    }
    return Dataset(
        "union",
        join({name: dataset.train for name, dataset in datasets.items()}, tuple(datasets)),
        join({name: dataset.test for name, dataset in datasets.items()}, tuple(datasets)),
        server,
        first.vocabulary,
        left_out_of(datasets),
        warnings=warnings_of(datasets),
    )


def _of_domain(index: int, samples: Samples, domains: tuple[str, ...]) -> Samples:
    """The samples of one source, assigned to its domain in the union."""
    columns = {**samples.columns, "domain": np.full(len(samples), index, np.int64)}
    return replace(samples, columns=columns, domain_names=domains)
