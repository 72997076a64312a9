"""Several sources as one federated data set, one domain each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from fedlab.config import ComponentField, Section
from fedlab.data.files.images import as_float
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import Source, build_source
from fedlab.errors import DataError


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
            name: build_source(component, f"data.source.sources.{name}") for name, component in settings.sources.items()
        }

    @property
    def held_out_classes(self) -> bool:
        return any(getattr(source, "held_out_classes", False) for source in self.parts.values())

    def missing(self) -> str | None:
        reports = {name: source.missing() for name, source in self.parts.items()}
        lines = [
            f"{name}: {report.replace('data.source', f'data.source.sources.{name}')}"
            for name, report in reports.items()
            if report
        ]
        return "\n".join(lines) or None

    def load(self, seed: int) -> Dataset:
        datasets = {}
        for name, source in self.parts.items():
            try:
                datasets[name] = source.load(seed)
            except DataError as error:
                key = error.key.replace("data.source", f"data.source.sources.{name}", 1)
                raise DataError(key, error.value, error.expected, error.fix) from error
        first_name, first = next(iter(datasets.items()))
        for name, dataset in datasets.items():
            _agree(name, dataset, first_name, first)
        server = {
            f"{name}/{held}": _of_domain(index, samples, tuple(datasets))
            for index, (name, dataset) in enumerate(datasets.items())
            for held, samples in dataset.server.items()
        }
        return Dataset(
            "union",
            _join({name: dataset.train for name, dataset in datasets.items()}),
            _join({name: dataset.test for name, dataset in datasets.items()}),
            server,
            first.vocabulary,
            tuple(
                replace(left, what=f"{left.what} of {name!r}")
                for name, dataset in datasets.items()
                for left in dataset.left_out
            ),
        )


def _agree(name: str, dataset: Dataset, first_name: str, first: Dataset) -> None:
    key = f"data.source.sources.{name}"
    if _columns(dataset.train) != _columns(first.train):
        raise DataError(
            key,
            f"columns {_columns(dataset.train)}",
            f"{_columns(first.train)}, as in {first_name!r}",
            "unite sources of one kind",
        )
    for column in _columns(first.train):
        shape, wanted = dataset.train[column].shape[1:], first.train[column].shape[1:]
        if shape != wanted:
            raise DataError(
                key,
                f"{column}s of shape {shape}",
                f"{wanted}, as in {first_name!r}",
                "set the same size and channels for all sources",
            )
    if dataset.train.num_classes != first.train.num_classes:
        raise DataError(
            key,
            f"{dataset.train.num_classes} classes",
            f"{first.train.num_classes}, as in {first_name!r}",
            "sources of one union need the same classes in the same order",
        )
    if dataset.vocabulary != first.vocabulary:
        raise DataError(
            key,
            f"a vocabulary of {len(dataset.vocabulary)} words",
            f"that of {first_name!r}, {len(first.vocabulary)} words in the same order",
            "give both the same tokenizer",
        )


def _columns(samples: Samples) -> list[str]:
    return sorted(set(samples.columns) - {"domain", "group"})


def _of_domain(index: int, samples: Samples, domains: tuple[str, ...]) -> Samples:
    """The samples of one source, assigned to its domain in the union."""
    columns = {**samples.columns, "domain": np.full(len(samples), index, np.int64)}
    return replace(samples, columns=columns, domain_names=domains)


def _join(parts: dict[str, Samples]) -> Samples:
    """All parts in one `Samples`. Owners are kept as ``domain/owner`` if every part has owners."""
    samples = list(parts.values())
    columns = {}
    for column in _columns(samples[0]):
        values = [part[column] for part in samples]
        if column == "image" and len({images.dtype for images in values}) > 1:
            values = [as_float(images) for images in values]
        columns[column] = np.concatenate(values)
    columns["domain"] = np.repeat(np.arange(len(samples)), [len(part) for part in samples])
    group_names: list[str] = []
    if all("group" in part.columns for part in samples):
        groups = []
        for name, part in parts.items():
            groups.append(part["group"] + len(group_names))
            group_names += [f"{name}/{owner}" for owner in part.group_names]
        columns["group"] = np.concatenate(groups)
    return Samples(columns, samples[0].class_names, tuple(parts), tuple(group_names))
