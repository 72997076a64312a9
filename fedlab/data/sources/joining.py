"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedlab.data.files.images import as_float
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import Source
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut


def load_part(source: Source, place: str, seed: int) -> Dataset:
    """The data set of one of several sources.

    Args:
        source: the source.
        place: configuration key of the source; it replaces ``data.source`` in errors.
        seed: the run's seed.

    Raises:
        DataError: as the source raises it; its key names the place.
    """
    try:
        return source.load(seed)
    except DataError as error:
        key = error.key.replace("data.source", place, 1) if "data.source" in error.key else f"{place}: {error.key}"
        expected, fix = (text.replace("data.source", place) for text in (error.expected, error.fix))
        raise DataError(key, error.value, expected, fix) from error


def missing_parts(sources: Mapping[str, Source], place: str) -> str | None:
    """Which data of several sources is missing on this machine.

    Args:
        sources: by name.
        place: configuration key below which they are.
    """
    reports = {name: source.missing() for name, source in sources.items()}
    lines = [
        f"{name}: {report.replace('data.source', f'{place}.{name}')}" for name, report in reports.items() if report
    ]
    return "\n".join(lines) or None


def column_names(samples: Samples) -> list[str]:
    """The columns that parts must have in common; domains and owners are made anew."""
    return sorted(set(samples.columns) - {"domain", "group"})


def check_alike(key: str, dataset: Dataset, first_name: str, first: Dataset, advice: str = "") -> None:
    """Refuse a data set whose columns, shapes or vocabulary differ from those of the first one.

    Args:
        key: configuration key of the data set, for the error.
        dataset: the data set.
        first_name: name of the first one.
        first: the first one.
        advice: what to do about different columns and shapes; default: what to do in a union.

    Raises:
        DataError: they differ.
    """
    ours, theirs = column_names(dataset.train), column_names(first.train)
    if ours != theirs:
        raise DataError(
            key, f"columns {ours}", f"{theirs}, as in {first_name!r}", advice or "unite sources of one kind"
        )
    for column in theirs:
        shape, wanted = dataset.train[column].shape[1:], first.train[column].shape[1:]
        if shape != wanted:
            raise DataError(
                key,
                f"{column}s of shape {shape}",
                f"{wanted}, as in {first_name!r}",
                advice or "set the same size and channels for all sources",
            )
    if dataset.vocabulary != first.vocabulary:
        raise DataError(
            key,
            f"a vocabulary of {len(dataset.vocabulary)} words",
            f"that of {first_name!r}, {len(first.vocabulary)} words in the same order",
            "give both the same tokenizer",
        )


def join(parts: Mapping[str, Samples], domains: Sequence[str]) -> Samples:
    """All parts in one `Samples`, each a domain. Owners are kept as ``part/owner`` if every part has owners.

    Args:
        parts: samples by the name of their domain.
        domains: names of all domains, also of those without a part here.
    """
    samples = list(parts.values())
    columns = {}
    for column in column_names(samples[0]):
        values = [part[column] for part in samples]
        if column == "image" and len({images.dtype for images in values}) > 1:
            values = [as_float(images) for images in values]
        columns[column] = np.concatenate(values)
    codes = [list(domains).index(name) for name in parts]
    columns["domain"] = np.repeat(np.array(codes, np.int64), [len(part) for part in samples])
    group_names: list[str] = []
    if all("group" in part.columns for part in samples):
        groups = []
        for name, part in parts.items():
            groups.append(part["group"] + len(group_names))
            group_names += [f"{name}/{owner}" for owner in part.group_names]
        columns["group"] = np.concatenate(groups)
    return Samples(columns, samples[0].class_names, tuple(domains), tuple(group_names))


def warnings_of(parts: Mapping[str, Dataset]) -> tuple[str, ...]:
    """What the sources of several parts have to say, with the name of the part."""
    return tuple(f"{name}: {warning}" for name, dataset in parts.items() for warning in dataset.warnings)


def left_out_of(parts: Mapping[str, Dataset]) -> tuple[LeftOut, ...]:
    """What the sources of several parts left out, with the name of the part."""
    return tuple(
        replace(left, what=f"{left.what} of {name!r}") for name, dataset in parts.items() for left in dataset.left_out
    )
