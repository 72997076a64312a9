"""Point clouds of one's own: an .npz archive, or files of meshes and clouds as ModelNet and ShapeNet-55 have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from fedlab.config import Fraction, Positive, Section
from fedlab.data.classes import test_part
from fedlab.data.clouds import COLUMN, unit_ball
from fedlab.data.files.listing import Listing
from fedlab.data.files.meshes import UNREAD, chosen, is_shape, read_shape, require_trimesh
from fedlab.data.files.reading import read_each
from fedlab.data.files.shape_lists import listed
from fedlab.data.files.spelling import one_form
from fedlab.data.samples import Dataset
from fedlab.data.sources.arrays import annotated
from fedlab.data.sources.npz import domains_and_groups, read_archive
from fedlab.data.stand_in import Draws, Wanted, united
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import InputPath

_SPLITS = ("train", "test")
_KEY = "data.source.path"
UNLABELED = "data"
"""Name of the array of an archive without labels, as in the widespread one of ShapeNet's 57,448 shapes."""
_Files = dict[str, list[tuple[Path, str]]]  # split → path and class of each file


class PointsSettings(Section):
    """Settings of the points source."""

    path: InputPath = Field(
        description=".npz file with x_train (n, N, 3), y_train, x_test, y_test and optionally class_names, "
        "domain_train, domain_test, group_train, group_test; or .npz file with the only array data (n, N, 3), without "
        "labels; or folder with <class>/train/*.off and <class>/test/*.off, or train/<class>/*.off and "
        "test/<class>/*.off, or <class>/*.off; also .ply, .obj and .npy (N, 3)"
    )
    lists: InputPath | None = Field(
        default=None,
        description="folder with train.txt and test.txt, which name the files in the folder path, one on each line: "
        "<class>-<shape>.npy, as in ShapeNet-55; default: the folders say the class and the split",
    )
    points: Positive = Field(
        default=1024, description="points of a shape: drawn on the surface of a mesh, or chosen from those of a cloud"
    )
    normalize: bool = Field(
        default=True, description="whether each shape is centered and scaled to the unit ball; false: left as it is"
    )
    test_fraction: Fraction = Field(
        default=0.2, lt=1, description="share of each class that becomes test samples, if nothing says which do"
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed by which points and test samples are drawn; independent of the run's seed"
    )


class Points:
    """Your own point clouds: one .npz file, or a folder of shapes (.off, .ply, .obj, .npy) sorted by class."""

    Settings = PointsSettings

    def __init__(self, settings: PointsSettings) -> None:
        self.settings = settings
        self.root = Path(settings.path).expanduser()

    def missing(self) -> str | None:
        return (
            None if self.root.exists() else f"nothing at {self.root}; set {_KEY} to an .npz file or a folder of shapes"
        )

    def load(self, seed: int) -> Dataset:
        if self.missing():
            raise DataError(_KEY, self.settings.path, "an .npz file or a folder of shapes", "check the path")
        if self.root.is_dir():
            return self._folder()
        if self.settings.lists is not None:
            fix = "set data.source.path to the folder that has the files, or leave data.source.lists out"
            raise DataError(_KEY, self.settings.path, "a folder, since data.source.lists names its files", fix)
        return self._archive()

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random clouds instead of those that are not here."""

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            clouds = draws.normal(self.settings.points, 3)
            return {COLUMN: clouds, "label": draws.label(), "domain": np.zeros(draws.count, np.int64)}

        return united(self.root.stem, wanted, {split: columns(split) for split in _SPLITS})

    # an archive

    def _archive(self) -> Dataset:
        arrays, left_out = read_archive(self.root, alone=UNLABELED)
        if UNLABELED in arrays:
            dataset = self._unlabeled(arrays[UNLABELED])
            return replace(dataset, left_out=(*left_out, *dataset.left_out))
        try:
            dataset = annotated(
                COLUMN,
                (self._clouds(arrays["x_train"], "x_train"), self._clouds(arrays["x_test"], "x_test")),
                (arrays["y_train"], arrays["y_test"]),
                **domains_and_groups(arrays),
                class_names=np.atleast_1d(arrays["class_names"]) if "class_names" in arrays else None,
                name=self.root.stem,
            )
        except DataError as error:
            raise DataError(f"{self.root}: {error.key}", error.value, error.expected, error.fix) from error
        return replace(dataset, left_out=(*left_out, *dataset.left_out))

    def _unlabeled(self, values: np.ndarray) -> Dataset:
        """Shapes (n, N, 3) of which no class is known. A share of them is drawn for testing."""
        clouds = self._clouds(values, f"{self.root}: {UNLABELED}")
        tested = self._drawn(UNLABELED, len(clouds))
        parts = clouds[~tested], clouds[tested]
        classes = np.zeros(len(parts[0]), np.int64), np.zeros(len(parts[1]), np.int64)
        return annotated(COLUMN, parts, classes, None, None, ["shape"], self.root.stem)

    def _drawn(self, name: str, count: int) -> np.ndarray:
        """Which of `count` shapes become test samples, (count,) bool."""
        rng = numpy_generator(self.settings.data_seed, "points split", name)
        drawn = np.zeros(count, bool)
        drawn[rng.permutation(count)[: test_part(count, int(count * self.settings.test_fraction))]] = True
        return drawn

    def _clouds(self, values: np.ndarray, key: str) -> np.ndarray:
        """Clouds (n, points, 3) float32 of an array (n, N, 3) of numbers."""
        found = f"shape {values.shape}, dtype {values.dtype}"
        if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind not in "fiu":
            fix = (
                "move the axis of the coordinates to the end: x.transpose(0, 2, 1)" if values.shape[1:2] == (3,) else ""
            )
            raise DataError(key, found, "clouds of equal size, numbers of shape (n, N, 3)", fix)
        finite = np.isfinite(values).all(axis=(1, 2))
        if not finite.all():
            bad = f"{int((~finite).sum()):,} of {len(values):,} shapes, the first is {int(np.argmin(finite))}"
            raise DataError(key, f"NaN or infinite coordinates in {bad}", "finite coordinates", "take these shapes out")
        rng = numpy_generator(self.settings.data_seed, "points of", key)
        clouds = [chosen(cloud, self.settings.points, rng, key) for cloud in values]
        return self._finished(np.reshape(clouds, (len(clouds), self.settings.points, 3)))

    def _finished(self, clouds: np.ndarray) -> np.ndarray:
        return (unit_ball(clouds.astype(np.float64)) if self.settings.normalize else clouds).astype(np.float32)

    # a folder

    def _folder(self) -> Dataset:
        listing = Listing(_KEY, self.root)
        lists = self.settings.lists
        files = self._files(listing) if lists is None else listed(Path(lists).expanduser(), self.root, listing)
        for split in _SPLITS:
            if not files[split]:
                found = "; ".join(map(str, listing.left_out)) or "add files that end in .off, .ply, .obj or .npy"
                raise DataError(
                    _KEY, str(self.root), f"{split} shapes in <class>/[train|test]/ or train|test/<class>/", found
                )
        ordered = [file for split in _SPLITS for file in files[split]]
        require_trimesh(self.settings.path, (path for path, _ in ordered))
        clouds = np.empty((len(ordered), self.settings.points, 3))

        def read(row: int, file: tuple[Path, str]) -> None:
            # a seed of its own for each file, so that a shape stays the same when others are added
            place = one_form(file[0].relative_to(self.root).as_posix())
            rng = numpy_generator(self.settings.data_seed, "points of", place)
            clouds[row] = read_shape(file[0], self.settings.points, rng)

        read_each(ordered, read, "shapes")
        ready, labels, bound = self._finished(clouds), np.array([name for _, name in ordered]), len(files["train"])
        dataset = annotated(
            COLUMN, (ready[:bound], ready[bound:]), (labels[:bound], labels[bound:]), None, None, None, self.root.name
        )
        return replace(dataset, left_out=(*listing.left_out, *dataset.left_out), warnings=listing.warnings)

    def _files(self, listing: Listing) -> _Files:
        found: _Files = {split: [] for split in _SPLITS}
        if all((self.root / split).is_dir() for split in _SPLITS):
            for folder in listing.folders(self.root):
                if folder.name not in _SPLITS:
                    listing.skip_below(folder, "their folder lies beside train and test")
                    continue
                for kind in listing.folders(folder):
                    found[folder.name] += _shapes(kind, one_form(kind.name), listing)
            return found
        for kind in listing.folders(self.root):
            name = one_form(kind.name)
            present = [split for split in _SPLITS if (kind / split).is_dir()]
            if len(present) == 1:
                absent = next(split for split in _SPLITS if split not in present)
                fix = f"add it, or put the files directly into {kind}"
                raise DataError(_KEY, str(kind / present[0]), f"a folder {absent!r} beside it", fix)
            if present:
                for folder in listing.folders(kind):
                    if folder.name in _SPLITS:
                        found[folder.name] += _shapes(folder, name, listing)
                    else:
                        listing.skip_below(folder, "their folder lies beside train and test")
                continue
            files = _shapes(kind, name, listing)
            for file, tested in zip(files, self._drawn(name, len(files)), strict=True):
                found["test" if tested else "train"].append(file)
        return found


def _shapes(folder: Path, name: str, listing: Listing) -> list[tuple[Path, str]]:
    files = listing.files(folder, is_shape, UNREAD)
    if not files:
        listing.skip(folder, "there is no shape in them", what="class folders")
    return [(file, name) for file in files]
