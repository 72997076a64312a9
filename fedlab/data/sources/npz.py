"""Images or feature vectors from one NumPy archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from fedlab.config import Section
from fedlab.data.files.reading import reading
from fedlab.data.files.spelling import checked_name, printable
from fedlab.data.samples import Dataset
from fedlab.data.sources.arrays import from_arrays
from fedlab.errors import DataError, did_you_mean
from fedlab.storage.paths import InputPath
from fedlab.storage.plain import check_plain
from fedlab.tracking.left_out import LeftOut

_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("domain_train", "domain_test", "group_train", "group_test", "class_names")


class NpzSettings(Section):
    """Settings of the npz source."""

    path: InputPath = Field(
        description=f".npz file with the arrays {', '.join(_REQUIRED)} and optionally {', '.join(_OPTIONAL)}"
    )


class Npz:
    """Your own images or vectors in one .npz file (x_train, y_train, x_test, y_test; domains, owners optional)."""

    Settings = NpzSettings

    def __init__(self, settings: NpzSettings) -> None:
        self.settings = settings
        self.path = Path(settings.path).expanduser()

    def missing(self) -> str | None:
        return None if self.path.is_file() else f"no file {self.path}; set data.source.path to an .npz archive"

    def load(self, seed: int) -> Dataset:
        if self.missing():
            raise DataError("data.source.path", self.settings.path, "an .npz file", "save one with numpy.savez")
        arrays, left_out = read_archive(self.path)
        try:
            dataset = from_arrays(
                *(arrays[key] for key in _REQUIRED),
                **domains_and_groups(arrays),
                class_names=np.atleast_1d(arrays["class_names"]) if "class_names" in arrays else None,
                name=self.path.stem,
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error.key}", error.value, error.expected, error.fix) from error
        return replace(dataset, left_out=(*left_out, *dataset.left_out))


def read_archive(path: Path, alone: str | None = None) -> tuple[dict[str, np.ndarray], tuple[LeftOut, ...]]:
    """The arrays of an archive that FedLab reads, and what is said of the others.

    Args:
        path: the archive.
        alone: name of an array with unlabeled samples that takes the place of all others, if none of them is there.

    Raises:
        DataError: it cannot be read, or an array is missing.
    """
    checked_name(str(path), "data.source.path", "a path")
    arrays, unread = _read(path, (alone,) if alone else ())
    if alone in arrays:
        if len(arrays) == 1:
            return arrays, _unread(unread)
        del arrays[alone]
        unread.append(alone)
    absent = [key for key in _REQUIRED if key not in arrays]
    absent += [key for stem in ("domain", "group") for key in _half_pair(stem, arrays)]
    if absent:
        raise DataError(
            "data.source.path",
            str(path),
            f"the keys {', '.join(absent)}",
            f"it holds {', '.join([*arrays, *unread]) or 'nothing'}; see numpy.savez",
        )
    return arrays, _unread(unread)


def domains_and_groups(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The pairs ``domains`` and ``groups`` of an archive, each None where it has none."""
    return {
        f"{stem}s": (arrays[f"{stem}_train"], arrays[f"{stem}_test"]) if f"{stem}_train" in arrays else None
        for stem in ("domain", "group")
    }


def _read(path: Path, further: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that FedLab uses, `further` ones among them, and the names of the others."""
    key, fix = "data.source.path", "save it again with numpy.savez"
    expected = "a whole .npz archive of plain arrays (pickled objects are never loaded)"
    arrays: dict[str, np.ndarray] = {}
    with reading(key, str(path), expected, fix):
        check_plain(path)
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array and is no archive")
    with archive:
        for name in archive.files:
            if name in (*_REQUIRED, *_OPTIONAL, *further):
                with reading(key, f"{path} [{name}]", expected, fix):
                    arrays[name] = archive[name]
        return arrays, [printable(name) for name in archive.files if name not in arrays]


def _unread(names: list[str]) -> tuple[LeftOut, ...]:
    if not names:
        return ()
    known = (*_REQUIRED, *_OPTIONAL)
    meant = next((f"{name}: {hint}" for name in names if (hint := did_you_mean(name, known)).startswith("did")), "")
    return (LeftOut("arrays", len(names), "FedLab reads no arrays of these names", None, meant, tuple(names[:10])),)


def _half_pair(stem: str, arrays: dict[str, np.ndarray]) -> list[str]:
    """The absent key of a train/test pair of which only one is there."""
    present = [f"{stem}_{split}" in arrays for split in ("train", "test")]
    if all(present) or not any(present):
        return []
    return [f"{stem}_{'test' if present[0] else 'train'}"]
