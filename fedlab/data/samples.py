"""Samples in memory as named columns of equal length, for every modality."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedlab.data.files.pixels import float_advice
from fedlab.data.files.spelling import is_text, printable
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut
from fedlab.tracking.notebook import to_html

_MOST_NAMES = 20


def on_device(samples: Samples, device: torch.device) -> dict[str, Tensor]:
    """The columns of some samples as tensors, without a copy on the CPU."""
    return {name: torch.from_numpy(values).to(device) for name, values in samples.columns.items()}


@dataclass(frozen=True)
class Samples:
    """`n` samples as columns.

    Args:
        columns: name → numeric array whose first axis is the sample. Reserved names: ``image`` (n, C, H, W), uint8 or
            float32 in [0, 1]; ``points`` (n, N, 3), float32; ``label`` (n,) int64 class indices; ``domain`` (n,) int64
            index into `domain_names`; ``group`` (n,) int64 natural owner (writer, site, speaker), index into
            `group_names`. All are optional, and columns of other names reach the method as they are.
        class_names: one name per class.
        domain_names: one name per domain; a single ``""``-free default where the source has only one.
        group_names: one name per natural owner, empty where there is none.
        check: look at all values; not needed for values of samples that have been looked at.

    Raises:
        DataError: columns of different lengths or of a type no tensor holds, labels outside the classes, NaN or
            infinite values.
    """

    columns: Mapping[str, np.ndarray]
    class_names: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ("all",)
    group_names: tuple[str, ...] = ()
    check: InitVar[bool] = field(default=True, kw_only=True)

    def __post_init__(self, check: bool) -> None:
        if not check:
            return
        for name, values in self.columns.items():
            _check_type(name, values)
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError("data columns", lengths, "equal numbers of samples in every column")
        for name, values in self.columns.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
                raise DataError(
                    f"data column {name!r}",
                    f"NaN or infinite value in sample {bad}",
                    "finite numbers",
                    "clean the data",
                )
        for name, names in (("label", self.class_names), ("domain", self.domain_names), ("group", self.group_names)):
            codes = self.columns.get(name)
            if codes is None or not len(codes):
                continue
            if codes.dtype.kind not in "iu" or codes.ndim != 1 or codes.min() < 0 or codes.max() >= len(names):
                raise DataError(
                    f"data column {name!r}",
                    f"values from {codes.min()} to {codes.max()}, dtype {codes.dtype}, shape {codes.shape}",
                    f"integers from 0 to {len(names) - 1}, shape (n,)"
                    if names
                    else f"no such column, because there are no {name}_names",
                )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def select(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`, in that order."""
        return self.with_columns({name: values[indices] for name, values in self.columns.items()})

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> Samples:
        """Samples with the same classes, domains and owners and other columns, whose values are not checked again."""
        return Samples(columns, self.class_names, self.domain_names, self.group_names, check=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every value, name, type and shape; equal data have equal fingerprints."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.class_names, self.domain_names, self.group_names)).encode())
        for name in sorted(self.columns):
            values = np.ascontiguousarray(self.columns[name])
            digest.update(f"{name}:{values.dtype.str}:{values.shape}".encode())
            digest.update(values.data if values.size else b"")
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """The data set that a source delivers: disjoint training and test samples with the same columns and names.

    Args:
        name: name of the data set.
        train: samples to be divided among the clients.
        test: likewise.
        server: samples the server holds, by name: a public set, query and gallery, support images. They are not
            divided and may have columns and names of their own.
        vocabulary: the words a text column's numbers stand for.
        left_out: what the source met and did not use; no part of the fingerprint.
        warnings: what the source has to say of its files, as sentences; no part of the fingerprint.
        sites: names of the sites that the samples come from, each of which is a domain; no part of the fingerprint. A
            node of a deployment has the samples of its own site only. Empty if the data does not come from sites.
        divided: whether the data came with its own clients, which are the owners of the samples; no part of the
            fingerprint.

    Raises:
        DataError: train and test disagree on columns, shapes, or class, domain or group names; images that are no
            images, points that are no points.
    """

    name: str
    train: Samples
    test: Samples
    server: Mapping[str, Samples] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    sites: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), kw_only=True)
    divided: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_names(self)
        for split, samples in {"train": self.train, "test": self.test, **self.server}.items():
            if "image" in samples.columns:
                _check_images(f"{self.name}: {split}", samples["image"])
            if "points" in samples.columns:
                _check_points(f"{self.name}: {split}", samples["points"])
        ours, theirs = ({n: v.shape[1:] for n, v in sorted(part.columns.items())} for part in (self.test, self.train))
        if ours != theirs:
            raise DataError(f"{self.name}: columns and shapes of test", ours, f"those of train: {theirs}")
        for names in ("class_names", "domain_names", "group_names"):
            if getattr(self.train, names) != getattr(self.test, names):
                raise DataError(
                    f"{self.name}: {names}", getattr(self.test, names), f"those of train: {getattr(self.train, names)}"
                )

    @property
    def fingerprint(self) -> str:
        held = [(name, self.server[name].fingerprint) for name in sorted(self.server)]
        words = (self.vocabulary,) if self.vocabulary else ()
        text = repr((self.train.fingerprint, self.test.fingerprint, held, *words))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _repr_html_(self) -> str:
        """Samples, columns, classes and what was left out, as a notebook shows them."""
        from rich.table import Table
        from rich.text import Text

        table = Table("", "samples", "classes", "columns", title=Text(self.name))
        table.columns[1].justify = table.columns[2].justify = "right"
        for split, samples in {"train": self.train, "test": self.test, **self.server}.items():
            columns = ", ".join(map(_described, samples.columns.items()))
            table.add_row(Text(split), f"{len(samples):,}", f"{samples.num_classes:,}", Text(columns))
        named = {
            "classes": self.train.class_names,
            "domains": self.train.domain_names if len(self.train.domain_names) > 1 else (),
            "owners": self.train.group_names,
            "sites": self.sites,
        }
        lines = [f"{kind}: {_listed(names)}" for kind, names in named.items() if names]
        told = [*(left.notice for left in self.left_out), *(f"warning: {warning}" for warning in self.warnings)]
        return to_html([table, *lines, *told])


def _described(column: tuple[str, np.ndarray]) -> str:
    """``image 3×32×32 uint8``."""
    name, values = column
    return " ".join(filter(None, [name, "×".join(map(str, values.shape[1:])), str(values.dtype)]))


def _listed(names: tuple[str, ...]) -> str:
    """The first names, and how many there are more."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _check_names(dataset: Dataset) -> None:
    """Refuse names that are not UTF-8, because they are written to files and reports."""
    parts = {"train": dataset.train, **dataset.server}
    kinds = ("class_names", "domain_names", "group_names")
    named = {f"{split} {kind}": getattr(samples, kind) for split, samples in parts.items() for kind in kinds}
    named |= {"name": (dataset.name,), "server data": tuple(dataset.server), "vocabulary": dataset.vocabulary}
    for kind, names in named.items():
        wrong = next((name for name in names if not is_text(name)), None)
        if wrong is not None:
            raise DataError(kind, printable(wrong), "names in UTF-8", "rename it: no report could show it")


def _check_type(name: str, values: np.ndarray) -> None:
    fix = "encode text as integers; pad sequences of different lengths to one"
    if not isinstance(values, np.ndarray) or not values.ndim:
        raise DataError(f"data column {name!r}", type(values).__name__, "an array with the samples as first axis", fix)
    try:
        torch.from_numpy(np.empty(0, values.dtype))
        known = values.dtype.kind in "biuf"
    except (TypeError, ValueError):
        known = False
    if not known:
        raise DataError(
            f"data column {name!r}", f"dtype {values.dtype}", "numbers or truth values, as a tensor can hold", fix
        )


def _check_points(key: str, clouds: np.ndarray) -> None:
    if clouds.ndim != 3 or clouds.shape[2] != 3 or clouds.dtype != np.float32:
        described = f"shape {clouds.shape}, dtype {clouds.dtype}"
        raise DataError(f"{key} points", described, "(n, N, 3), float32", "the source points converts your own clouds")


def _check_images(key: str, images: np.ndarray) -> None:
    described = f"shape {images.shape}, dtype {images.dtype}"
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"{key} images", described, "(n, C, H, W), uint8 or float32", "fedlab.from_arrays converts them"
        )
    if images.dtype == np.float32 and images.size and not (images.min() >= 0 and images.max() <= 1):
        raise DataError(
            f"{key} images",
            f"values from {images.min():g} to {images.max():g}",
            "values in [0, 1]",
            float_advice(float(images.min()), float(images.max())),
        )
