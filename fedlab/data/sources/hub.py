"""Image data sets of the Hugging Face hub, by name or from a local path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.classes import by_name, coded, labeled
from fedlab.data.files.images import PictureReader, is_picture
from fedlab.data.files.listing import Listing, hidden
from fedlab.data.files.reading import Gathered, reading, reason
from fedlab.data.files.spelling import checked_name
from fedlab.data.samples import Dataset, Samples
from fedlab.data.stand_in import Draws, Wanted, united
from fedlab.errors import DataError, did_you_mean
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import HubPath
from fedlab.storage.plain import read_plain
from fedlab.tracking.left_out import LeftOut

_SPLITS = ("train_split", "test_split")
_COLUMNS = ("image_column", "label_column", "group_column")


class HubSettings(Section):
    """Settings of the hub source."""

    path: HubPath = Field(
        min_length=1,
        description="name on the hub (ylecun/mnist), or a folder written by save_to_disk or readable by load_dataset",
    )
    config: str | None = Field(default=None, description="configuration of the data set, if it has several")
    train_split: str = Field(default="train", description="training split; with a hub name also a slice: train[:80%]")
    test_split: str = Field(default="test", description="test split; with a hub name also a slice: train[80%:]")
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = Field(default=None, description="column that names the owner of each sample")
    size: Positive = Field(
        default=32, description="height and width to which pictures are resized, ignoring their aspect"
    )
    channels: Literal[1, 3] = Field(default=3, description="3: RGB, 1: gray")
    limit: Positive | None = Field(
        default=None, description="largest number of samples of each split; more are reduced by a random draw"
    )
    data_seed: int = Field(default=0, ge=0, description="seed of that draw; independent of the run's seed")


@dataclass(frozen=True)
class _Columns:
    """Columns of one split; `names` are its classes', where it has them, `group` the owners, `files` of pictures."""

    image: np.ndarray
    label: np.ndarray
    names: tuple[str, ...] | None
    group: np.ndarray
    files: frozenset[str]


class Hub:
    """Any image data set of the Hugging Face hub, by name or local path, through `datasets`."""

    Settings = HubSettings

    def __init__(self, settings: HubSettings) -> None:
        self.settings = settings
        self.path = Path(settings.path).expanduser()

    def missing(self) -> str | None:
        if self.path.exists():
            return None
        name = self.settings.path
        if name.count("/") > 1 or name.startswith((".", "~", "/")):
            return f"no folder {name}; write one with datasets' save_to_disk, or give a hub name"
        if (_hub_cache() / f"datasets--{name.replace('/', '--')}").is_dir():
            return None
        return (
            f"hub data set {name!r} is not in the local cache ({_hub_cache()}): the run will download it, which needs "
            "network access; offline, copy a save_to_disk folder here and set data.source.path to it"
        )

    def load(self, seed: int) -> Dataset:
        settings = self.settings
        reader, broken = PictureReader("data.source.image_column"), Gathered("pictures")
        warnings = self._checked_names()
        tables = {split: self._open(split) for split in _SPLITS}
        left_out = [*_unused(tables["train_split"], self._used)]
        train, test = (self._columns(split, table, reader, broken, left_out) for split, table in tables.items())
        broken.settle()
        labels, class_names = _classes(train, test)
        groups, group_names = (None, ()) if not settings.group_column else coded("group", (train.group, test.group))

        def samples(position: int, image: np.ndarray) -> Samples:
            arrays = {"image": image, "label": labels[position], "domain": np.zeros(len(image), dtype=np.int64)}
            if groups:
                arrays["group"] = groups[position]
            return Samples(arrays, class_names, group_names=group_names)

        counted = (*left_out, *self._unread({*train.files, *test.files}), *reader.left_out)
        return Dataset(
            settings.path, samples(0, train.image), samples(1, test.image), left_out=counted, warnings=warnings
        )

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random pictures instead of those that are not here."""

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            size, grouped = self.settings.size, self.settings.group_column
            made = {"image": draws.pictures(self.settings.channels, size, size), "label": draws.label()}
            owners = {"group": draws.dealt(wanted.domains)} if grouped else {}
            return {**made, **owners, "domain": np.zeros(draws.count, np.int64)}

        return united(self.settings.path, wanted, {split: columns(split) for split in ("train", "test")})

    def _checked_names(self) -> tuple[str, ...]:
        """Warnings about links in a folder. Refuse what `datasets` fails on without a message, or reads forever.

        Raises:
            DataError: a file's name is not UTF-8, or it is no file but a pipe or a device.
        """
        if not self.path.is_dir():
            return ()
        listing = Listing("data.source.path", self.path)
        listing.below(self.path, lambda path: True, "")
        for path in sorted(listing.special):
            raise DataError("data.source.path", str(path), "files and folders only", "take it out: it is no file")
        return listing.warnings

    def _has_strays(self) -> bool:
        """Whether `datasets` would read hidden files in the folder: it skips only names that begin with . or __."""
        found = (name for _, folders, files in os.walk(self.path) for name in (*folders, *files))
        return any(hidden(name) and not name.startswith((".", "__")) for name in found)

    def _unread(self, files: set[str]) -> tuple[LeftOut, ...]:
        """Files in a folder of pictures that belong to no split that is read."""
        root = os.path.realpath(self.path)
        if self.settings.limit is not None or not any(file.startswith(root + os.sep) for file in files):
            return ()
        listing = Listing("data.source.path", self.path)
        listing.below(
            self.path, lambda path: os.path.realpath(path) in files, "datasets takes them into no split that is read"
        )
        return listing.left_out

    @property
    def _used(self) -> tuple[str, ...]:
        columns = (getattr(self.settings, key) for key in _COLUMNS)
        return tuple(column for column in columns if column is not None)

    def _open(self, split: str) -> Any:
        import datasets

        settings, name = self.settings, getattr(self.settings, split)
        expected = "a data set on the hub, in the local cache or in a local folder"
        checked_name(settings.path, "data.source.path", "a path")
        with reading("data.source.path", settings.path, expected, self.missing() or "repair or download it again"):
            if (self.path / "dataset_dict.json").is_file():
                splits = datasets.load_from_disk(str(self.path))
                if name not in splits:
                    raise DataError(
                        f"data.source.{split}", name, f"one of {', '.join(splits)}", did_you_mean(name, splits)
                    )
                return splits[name]
            if (self.path / "state.json").is_file():
                raise DataError(
                    "data.source.path",
                    settings.path,
                    "a DatasetDict with train and test",
                    "this folder holds a single split",
                )
            if (self.path / name).is_dir() and self._has_strays():
                shown = Listing("data.source.path", self.path).below(self.path / name, is_picture, "")
                return datasets.load_dataset(
                    "imagefolder", data_files={name: [str(file) for file in shown]}, split=name
                )
            source = str(self.path) if self.path.exists() else settings.path
            try:
                return datasets.load_dataset(source, settings.config, split=name)
            except ValueError as error:
                expected = "a split and configuration of this data set"
                raise DataError(f"data.source.{split}", name, expected, reason(error)) from error

    def _columns(
        self, split: str, dataset: Any, reader: PictureReader, broken: Gathered, left_out: list[LeftOut]
    ) -> _Columns:
        settings = self.settings
        for key in _COLUMNS:
            column = getattr(settings, key)
            if column is not None and column not in dataset.column_names:
                known = dataset.column_names
                raise DataError(f"data.source.{key}", column, f"one of {', '.join(known)}", did_you_mean(column, known))
        if settings.limit is not None and settings.limit < len(dataset):
            rest, of = len(dataset) - settings.limit, f"samples of {getattr(settings, split)}"
            left_out.append(LeftOut(of, rest, "data.source.limit asks for no more", len(dataset)))
            rng = numpy_generator(settings.data_seed, "hub limit", split)
            dataset = dataset.select(np.sort(rng.permutation(len(dataset))[: settings.limit]))
        labels = _values(dataset, "label_column", settings.label_column)
        names = getattr(dataset.features[settings.label_column], "names", None)
        if names is not None and len(labels) and labels.min() < 0:
            raise DataError(f"data.source.{split}", getattr(settings, split), "labeled samples", "use a labeled split")
        image, files = self._images(split, dataset, reader, broken)
        return _Columns(
            image,
            labels,
            tuple(names) if names is not None else None,
            _values(dataset, "group_column", settings.group_column) if settings.group_column else labels,
            files,
        )

    def _images(
        self, split: str, dataset: Any, reader: PictureReader, broken: Gathered
    ) -> tuple[np.ndarray, frozenset[str]]:
        size, channels, column = self.settings.size, self.settings.channels, self.settings.image_column
        pictures = _undecoded(dataset, column)
        images = np.zeros((len(dataset), channels, size, size), dtype=np.uint8)
        files = set()

        def read(row: int, _: int) -> None:
            name = f"{column!r}, sample {row} of {getattr(self.settings, split)}"
            with reading(reader.key, name, "a readable image", "repair the data set"):
                value = pictures[row][column]
                if isinstance(value, dict) and value.get("path"):
                    files.add(os.path.realpath(value["path"]))
                value = _file(value)
            images[row] = reader.sample(value, name, size, channels)

        broken.read(range(len(images)), read)
        return images, frozenset(files)


def _undecoded(dataset: Any, column: str) -> Any:
    """One column with pictures as undecoded files; they are decoded here, by the rules of all sources."""
    import datasets

    if isinstance(dataset.features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset.select_columns([column])


def _file(value: Any) -> Any:
    """The bytes of a picture that the data set keeps as a file; anything else as it is."""
    if not (isinstance(value, dict) and "bytes" in value):
        return value
    if value["bytes"] is not None:
        return value["bytes"]
    path = value.get("path")
    if path is not None and Path(path).is_file():
        return read_plain(Path(path))
    import datasets

    return datasets.Image().decode_example(value)  # inside an archive, or on a server


def _classes(train: _Columns, test: _Columns) -> tuple[tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """Class codes of both splits, matched by the names of the classes if a split has names."""
    key = "data.source.label_column"
    if train.names is None and test.names is None:
        pair = train.label, test.label
        if pair[0].dtype.kind == "U" or pair[1].dtype.kind == "U":
            return labeled(pair, None, key)
        return coded(key, pair)
    codes, names = [], []
    for part, other in ((train, "test"), (test, "train")):
        if part.names is not None:
            codes.append(part.label)
            names.append(part.names)
        elif part.label.dtype.kind == "U":
            unique, places = np.unique(part.label, return_inverse=True)
            codes.append(places)
            names.append(tuple(map(str, unique)))
        else:
            raise DataError(
                key, f"whole numbers without names, where {other} has names", "class names in both splits, or in none",
                "cast the column with datasets' cast_column and one ClassLabel",
            )  # fmt: skip
    return by_name((codes[0], codes[1]), (names[0], names[1]), key)


def _unused(table: Any, used: tuple[str, ...]) -> tuple[LeftOut, ...]:
    rest = tuple(name for name in table.column_names if name not in used)
    return (LeftOut("columns", len(rest), "no setting names them", len(table.column_names), "", rest),) if rest else ()


def _values(dataset: Any, key: str, column: str) -> np.ndarray:
    with reading(f"data.source.{key}", column, "a readable column", "repair the data set"):
        values = np.asarray(dataset[column][:])
    if values.ndim != 1 or values.dtype.kind not in "biuU":
        raise DataError(
            f"data.source.{key}",
            column,
            "one integer or text for every sample",
            f"it holds {dataset.features[column]}, or some of its values are missing",
        )
    return values


def _hub_cache() -> Path:
    """Where huggingface_hub keeps downloads, read from the environment, because importing it takes a second."""
    home = os.environ.get("HF_HOME", str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", str(Path(home) / "hub"))).expanduser()
