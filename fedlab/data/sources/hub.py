"""Image data sets of the Hugging Face hub, by name or from a local path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.images import decode
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.arrays import encode
from fedlab.errors import DataError, did_you_mean
from fedlab.seeding import numpy_generator


class HubSettings(Section):
    """Settings of the hub source."""

    path: str = Field(
        min_length=1,
        description="hub name (ylecun/mnist), local folder written by save_to_disk, or any folder load_dataset reads",
    )
    config: str | None = Field(default=None, description="configuration of the data set, where it has several")
    train_split: str = Field(default="train", description="training split; of hub names also a slice: train[:80%]")
    test_split: str = Field(default="test", description="test split; of hub names also a slice: train[80%:]")
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = Field(default=None, description="column naming every sample's natural owner")
    size: Positive = Field(default=32, description="pictures are resized to this height and width, aspect ignored")
    channels: Literal[1, 3] = Field(default=3, description="3: RGB, 1: grey")
    limit: Positive | None = Field(default=None, description="at most so many samples of each split, drawn at random")
    data_seed: int = Field(default=0, ge=0, description="draws the `limit` samples; the run's seed does not")


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
        columns = {split: self._columns(split, self._open(split)) for split in ("train_split", "test_split")}
        train, test = columns["train_split"], columns["test_split"]
        if train["names"] is not None:
            class_names, labels = train["names"], (train["label"], test["label"])
        else:
            labels, class_names = encode((train["label"], test["label"]))
        groups, group_names = encode((train["group"], test["group"])) if settings.group_column else (None, ())

        def samples(position: int, image: np.ndarray) -> Samples:
            arrays = {"image": image, "label": labels[position], "domain": np.zeros(len(image), dtype=np.int64)}
            if groups:
                arrays["group"] = groups[position]
            return Samples(arrays, class_names, group_names=group_names)

        return Dataset(settings.path, samples(0, train["image"]), samples(1, test["image"]))

    def _open(self, split: str) -> Any:
        import datasets

        settings, name = self.settings, getattr(self.settings, split)
        try:
            if (self.path / "dataset_dict.json").is_file():
                splits = datasets.load_from_disk(str(self.path))
                if name not in splits:
                    raise DataError(
                        f"data.source.{split}", name, f"one of {', '.join(splits)}", did_you_mean(name, splits)
                    )
                return splits[name]
            if (self.path / "state.json").is_file():
                raise DataError(
                    "data.source.path", settings.path, "a DatasetDict with train and test", "this folder is one split"
                )
            source = str(self.path) if self.path.exists() else settings.path
            return datasets.load_dataset(source, settings.config, split=name)
        except ValueError as error:
            raise DataError(
                f"data.source.{split}", name, "a split and configuration of this data set", " ".join(str(error).split())
            ) from error
        except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                "data.source.path",
                settings.path,
                "a data set on the hub, in the local cache or in a local folder",
                self.missing() or " ".join(f"{type(error).__name__}: {error}".split()),
            ) from error

    def _columns(self, split: str, dataset: Any) -> dict[str, Any]:
        settings = self.settings
        for key in ("image_column", "label_column", "group_column"):
            column = getattr(settings, key)
            if column is not None and column not in dataset.column_names:
                known = dataset.column_names
                raise DataError(f"data.source.{key}", column, f"one of {', '.join(known)}", did_you_mean(column, known))
        if settings.limit is not None and settings.limit < len(dataset):
            rng = numpy_generator(settings.data_seed, "hub limit", split)
            dataset = dataset.select(np.sort(rng.permutation(len(dataset))[: settings.limit]))
        labels = _values(dataset, "label_column", settings.label_column)
        names = getattr(dataset.features[settings.label_column], "names", None)
        if names is not None and len(labels) and labels.min() < 0:
            raise DataError(
                f"data.source.{split}", getattr(settings, split), "labelled samples", "use a labelled split"
            )
        return {
            "image": self._images(dataset),
            "label": labels.astype(np.int64) if names is not None else labels,
            "names": tuple(names) if names is not None else None,
            "group": _values(dataset, "group_column", settings.group_column) if settings.group_column else None,
        }

    def _images(self, dataset: Any) -> np.ndarray:
        from PIL import Image

        size, channels, column = self.settings.size, self.settings.channels, self.settings.image_column
        images = np.empty((len(dataset), channels, size, size), dtype=np.uint8)
        row = 0  # the sample that is being read, for the message
        try:
            for picture in dataset.select_columns([column]):
                value = picture[column]
                if not isinstance(value, Image.Image):
                    value = Image.fromarray(np.asarray(value, dtype=np.uint8))
                images[row] = decode(value, size, channels)
                row += 1
        except (OSError, ValueError, TypeError, SyntaxError) as error:
            raise DataError(
                "data.source.image_column",
                f"{column!r}, sample {row}",
                "a readable image, or an array of 0 to 255",
                f"repair the data set ({error})",
            ) from error
        return images


def _values(dataset: Any, key: str, column: str) -> np.ndarray:
    values = np.asarray(dataset[column][:])
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise DataError(
            f"data.source.{key}",
            column,
            "one integer or text for every sample",
            f"it holds {dataset.features[column]}, perhaps with gaps",
        )
    return values


def _hub_cache() -> Path:
    """Where huggingface_hub keeps downloads; asked of the environment, as importing it takes a second."""
    home = os.environ.get("HF_HOME", str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", str(Path(home) / "hub"))).expanduser()
