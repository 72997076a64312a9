"""Images from one NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from pydantic import Field

from fedlab.config import Section
from fedlab.data.samples import Dataset
from fedlab.data.sources.arrays import from_arrays
from fedlab.errors import DataError

_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("domain_train", "domain_test", "group_train", "group_test", "class_names")


class NpzSettings(Section):
    """Settings of the npz source."""

    path: str = Field(description=f"the .npz file; keys {', '.join(_REQUIRED)}, optional {', '.join(_OPTIONAL)}")


class Npz:
    """Your own images in one .npz file (x_train, y_train, x_test, y_test; domains and owners optional)."""

    Settings = NpzSettings

    def __init__(self, settings: NpzSettings) -> None:
        self.settings = settings
        self.path = Path(settings.path).expanduser()

    def missing(self) -> str | None:
        return None if self.path.is_file() else f"no file {self.path}; set data.source.path to an .npz archive"

    def load(self, seed: int) -> Dataset:
        if self.missing():
            raise DataError("data.source.path", self.settings.path, "an .npz file", "save one with numpy.savez")
        arrays = self._read()
        absent = [key for key in _REQUIRED if key not in arrays]
        absent += [key for stem in ("domain", "group") for key in _half_pair(stem, arrays)]
        if absent:
            raise DataError(
                "data.source.path",
                self.settings.path,
                f"the keys {', '.join(absent)}",
                f"it holds {', '.join(arrays) or 'nothing FedLab reads'}; see numpy.savez",
            )
        try:
            return from_arrays(
                *(arrays[key] for key in _REQUIRED),
                domains=(arrays["domain_train"], arrays["domain_test"]) if "domain_train" in arrays else None,
                groups=(arrays["group_train"], arrays["group_test"]) if "group_train" in arrays else None,
                class_names=[str(name) for name in np.atleast_1d(arrays["class_names"])]
                if "class_names" in arrays
                else None,
                name=self.path.stem,
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error.key}", error.value, error.expected, error.fix) from error

    def _read(self) -> dict[str, np.ndarray]:
        arrays = {}
        key = ""
        try:
            archive = np.load(self.path, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            with archive:
                for key in archive.files:
                    if key in _REQUIRED or key in _OPTIONAL:
                        arrays[key] = archive[key]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError) as error:
            raise DataError(
                "data.source.path",
                f"{self.path}" + (f" [{key}]" if key else ""),
                "a whole .npz archive of plain arrays (pickled objects are never loaded)",
                f"save it again with numpy.savez ({error})",
            ) from error
        return arrays


def _half_pair(stem: str, arrays: dict[str, np.ndarray]) -> list[str]:
    """The absent key of a train/test pair of which only one is there."""
    present = [f"{stem}_{split}" in arrays for split in ("train", "test")]
    if all(present) or not any(present):
        return []
    return [f"{stem}_{'test' if present[0] else 'train'}"]
