"""Images from a folder with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from fedlab.config import Fraction, Positive, Section
from fedlab.data.classes import coded, test_part
from fedlab.data.files.images import UNREAD, PictureReader, is_picture
from fedlab.data.files.listing import Listing
from fedlab.data.files.spelling import one_form
from fedlab.data.samples import Dataset
from fedlab.data.sources.arrays import from_arrays
from fedlab.data.stand_in import Draws, Wanted, united
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import InputPath

_SPLITS = ("train", "test")
_KEY = "data.source.path"
_Files = list[tuple[Path, str, str]]  # path, class, client


class FolderSettings(Section):
    """Settings of the folder source."""

    path: InputPath = Field(
        description="folder with <class>/*.png, or with train/<class>/*.png and test/<class>/*.png; any image format"
    )
    clients: bool = Field(
        default=False,
        description="the folder has one folder per client at its first level; it becomes the samples' domain and owner",
    )
    whole_clients: bool = Field(
        default=False,
        description="with clients: draw whole folders of the first level as test samples, such as slides, so that none "
        "is divided; each must have the class folders directly in it",
    )
    size: Positive = Field(
        default=32, description="height and width to which pictures are resized, ignoring their aspect"
    )
    channels: Literal[1, 3] = Field(default=3, description="3: RGB, 1: gray")
    test_fraction: Fraction = Field(
        default=0.2, lt=1, description="share of each class that becomes test samples, if there is no folder test"
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed by which the test samples are drawn; independent of the run's seed"
    )


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
            raise DataError(_KEY, self.settings.path, "a folder of images", "check the path")
        listing, reader = Listing(_KEY, self.root), PictureReader(_KEY)
        clients = listing.folders(self.root) if self.settings.clients else [self.root]
        splits: dict[str, _Files] = {split: [] for split in _SPLITS}
        tested = self._tested(clients)
        for client in clients:
            name = one_form(client.name) if self.settings.clients else ""
            if tested is not None:
                splits["test" if client in tested else "train"] += _files(client, name, listing)
                continue
            for split, files in self._split(client, name, listing).items():
                splits[split] += files
        for split, files in splits.items():
            if not files:
                raise DataError(
                    _KEY,
                    str(self.root),
                    f"{split} images in " + ("<client>/" if self.settings.clients else "") + "[train|test]/<class>/",
                    _found(listing)
                    or "add image files, which end in .png, .jpg or another ending known to Pillow; if there is one "
                    "folder per client, set data.source.clients: true",
                )
        train, test = splits["train"], splits["test"]
        labels, class_names = coded("class", (_column(train, 1), _column(test, 1)))
        owners = (_column(train, 2), _column(test, 2)) if self.settings.clients else None
        images = reader.read_all([file for file, _, _ in (*train, *test)], self.settings.size, self.settings.channels)
        dataset = from_arrays(
            images[: len(train)],
            labels[0],
            images[len(train) :],
            labels[1],
            domains=owners,
            groups=owners,
            class_names=class_names,
            name=self.root.name,
        )
        left_out = (*listing.left_out, *reader.left_out, *dataset.left_out)
        return replace(dataset, left_out=left_out, warnings=listing.warnings)

    def _tested(self, clients: Sequence[Path]) -> set[Path] | None:
        """The folders of the first level that become test samples as a whole; None if folders are divided.

        Raises:
            DataError: there are no folders of clients, or a single one.
        """
        s = self.settings
        if not s.whole_clients:
            return None
        if not s.clients or len(clients) < 2:
            expected = (
                "data.source.clients: true and at least two folders at the first level, some of which are for tests"
            )
            raise DataError("data.source.whole_clients", True, expected, "change it, or set whole_clients: false")
        order = numpy_generator(s.data_seed, "folder split of clients").permutation(len(clients))
        count = test_part(len(clients), int(len(clients) * s.test_fraction))
        return {clients[place] for place in order[:count]}

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random pictures instead of those that are not here."""
        size, channels = self.settings.size, self.settings.channels

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            made = {"image": draws.pictures(channels, size, size), "label": draws.label()}
            owner = draws.dealt(wanted.domains) if self.settings.clients else np.zeros(draws.count, np.int64)
            return {**made, "domain": owner, **({"group": owner} if self.settings.clients else {})}

        return united(self.root.name, wanted, {split: columns(split) for split in _SPLITS})

    def _split(self, folder: Path, client: str, listing: Listing) -> dict[str, _Files]:
        """The folder's own train and test parts, or a drawn one."""
        present = [split for split in _SPLITS if (folder / split).is_dir()]
        if len(present) == 2:
            for other in listing.folders(folder):
                if other.name not in _SPLITS:
                    listing.skip_below(other, "their folder lies beside train and test")
            return {split: _files(folder / split, client, listing) for split in _SPLITS}
        if present:
            absent = next(split for split in _SPLITS if split not in present)
            raise DataError(
                _KEY,
                str(folder / present[0]),
                f"a folder {absent!r} beside it",
                f"add {absent}/<class>/, or put the class folders directly into {folder}",
            )
        parts: dict[str, _Files] = {split: [] for split in _SPLITS}
        files = _files(folder, client, listing)
        for label in sorted({label for _, label, _ in files}):
            members = [file for file in files if file[1] == label]
            rng = numpy_generator(self.settings.data_seed, "folder split", client, label)
            count = test_part(len(members), int(len(members) * self.settings.test_fraction))
            drawn = set(rng.permutation(len(members))[:count].tolist())
            for position, file in enumerate(members):
                parts["test" if position in drawn else "train"].append(file)
        return parts


def _files(parent: Path, client: str, listing: Listing) -> _Files:
    found: _Files = []
    for folder in listing.folders(parent):
        files = listing.files(folder, is_picture, UNREAD)
        if not files:
            listing.skip(folder, "there is no picture in them", what="class folders")
        found += [(path, one_form(folder.name), client) for path in files]
    return found


def _found(listing: Listing) -> str:
    """What was found instead of pictures."""
    return "; ".join(str(left) for left in listing.left_out)


def _column(files: _Files, position: int) -> np.ndarray:
    return np.array([str(file[position]) for file in files])
