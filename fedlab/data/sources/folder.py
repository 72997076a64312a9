"""Images from a folder with one sub-folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from fedlab.config import Fraction, Positive, Section
from fedlab.data.images import IMAGE_SUFFIXES, read_image
from fedlab.data.samples import Dataset
from fedlab.data.sources.arrays import encode, from_arrays
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator

_SPLITS = ("train", "test")
_Files = list[tuple[Path, str, str]]  # path, class, client


class FolderSettings(Section):
    """Settings of the folder source."""

    path: str = Field(
        description="root folder: <class>/*.png, or train/<class>/*.png and test/<class>/*.png; any image format"
    )
    clients: bool = Field(
        default=False, description="the first level below the root is one folder per client: its domain and owner"
    )
    size: Positive = Field(default=32, description="pictures are resized to this height and width, aspect ignored")
    channels: Literal[1, 3] = Field(default=3, description="3: RGB, 1: grey")
    test_fraction: Fraction = Field(
        default=0.2, lt=1, description="part of each class kept for tests where there is no train and test folder"
    )
    data_seed: int = Field(default=0, ge=0, description="draws the test part; the run's seed does not change it")


class Folder:
    """Your own image files, one folder per class, optionally one folder per client above them."""

    Settings = FolderSettings

    def __init__(self, settings: FolderSettings) -> None:
        self.settings = settings
        self.root = Path(settings.path).expanduser()

    def missing(self) -> str | None:
        return None if self.root.is_dir() else f"no folder {self.root}; set data.source.path to the images' root folder"

    def load(self, seed: int) -> Dataset:
        if self.missing():
            raise DataError("data.source.path", self.settings.path, "a folder of images", "check the path")
        clients = _folders(self.root) if self.settings.clients else [self.root]
        splits: dict[str, _Files] = {split: [] for split in _SPLITS}
        for client in clients:
            name = client.name if self.settings.clients else ""
            for split, files in self._split(client, name).items():
                splits[split] += files
        for split, files in splits.items():
            if not files:
                raise DataError(
                    "data.source.path",
                    str(self.root),
                    f"{split} images in " + ("<client>/" if self.settings.clients else "") + "[train|test]/<class>/",
                    f"image files end in {', '.join(sorted(IMAGE_SUFFIXES))}; see data.source.clients",
                )
        train, test = splits["train"], splits["test"]
        labels, class_names = encode((_column(train, 1), _column(test, 1)))
        owners = (_column(train, 2), _column(test, 2)) if self.settings.clients else None
        return from_arrays(
            self._read(train),
            labels[0],
            self._read(test),
            labels[1],
            domains=owners,
            groups=owners,
            class_names=class_names,
            name=self.root.name,
        )

    def _split(self, folder: Path, client: str) -> dict[str, _Files]:
        """The folder's own train and test parts, or a drawn one."""
        present = [split for split in _SPLITS if (folder / split).is_dir()]
        if len(present) == 2:
            return {split: _files(folder / split, client) for split in _SPLITS}
        if present:
            absent = next(split for split in _SPLITS if split not in present)
            raise DataError(
                "data.source.path",
                str(folder / present[0]),
                f"a folder {absent!r} beside it",
                f"add {absent}/<class>/, or put the class folders directly into {folder}",
            )
        parts: dict[str, _Files] = {split: [] for split in _SPLITS}
        files = _files(folder, client)
        for label in sorted({label for _, label, _ in files}):
            members = [file for file in files if file[1] == label]
            rng = numpy_generator(self.settings.data_seed, "folder split", client, label)
            count = int(len(members) * self.settings.test_fraction)
            drawn = set(rng.permutation(len(members))[:count].tolist())
            for position, file in enumerate(members):
                parts["test" if position in drawn else "train"].append(file)
        return parts

    def _read(self, files: _Files) -> np.ndarray:
        size, channels = self.settings.size, self.settings.channels
        images = np.empty((len(files), channels, size, size), dtype=np.uint8)
        for row, (path, _, _) in enumerate(files):
            images[row] = read_image(path, size, channels)
        return images


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(parent: Path, client: str) -> _Files:
    return [
        (path, folder.name, client)
        for folder in _folders(parent)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


def _column(files: _Files, position: int) -> np.ndarray:
    return np.array([str(file[position]) for file in files])
