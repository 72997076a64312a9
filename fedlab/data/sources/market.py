"""Person re-identification folders named as Market-1501's are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, ProperFraction, Section
from fedlab.data.files.images import UNREAD, PictureReader, is_picture
from fedlab.data.files.listing import Listing
from fedlab.data.files.reading import Gathered, read_each
from fedlab.data.samples import Dataset, Samples
from fedlab.data.stand_in import Draws, Wanted
from fedlab.errors import DataError
from fedlab.metrics.chance import chance_precision
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import InputPath
from fedlab.tracking.left_out import LeftOut

_KEY = "data.source"
_TRAIN, _QUERY, _GALLERY = "bounding_box_train", "query", "bounding_box_test"
_JUNK = -1
_LEAST_TRAINED = _LEAST_HELD = 2  # identities of a source: one has nobody to be mistaken for
_MOST_CHANCE = 0.5
_PICTURES = 8  # of an identity in a random draw


def _names_both(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    if not {"identity", "camera"} <= groups.keys():
        raise ValueError("a regular expression with the named groups (?P<identity>…) and (?P<camera>…)")
    return pattern


class MarketSettings(Section):
    """Settings of the market source."""

    sources: dict[str, InputPath] = Field(
        min_length=1, description=f"name → root folder of each training data set, which holds {_TRAIN}/"
    )
    target: InputPath | None = Field(
        default=None,
        description=f"root folder of the unseen data set, with {_QUERY}/ and {_GALLERY}/; null if there is none",
    )
    pattern: Annotated[str, AfterValidator(_names_both)] = Field(
        default=r"^(?P<identity>-?\d+)_c(?P<camera>\d+)",
        description="regular expression that finds the numbers of identity and camera in the name of a file, such as 2 "
        "and 1 in 0002_c1s1_000451_03.jpg",
    )
    height: Positive = Field(default=256, description="height in pixels to which pictures are resized (bicubic)")
    width: Positive = Field(default=128, description="width in pixels to which pictures are resized (bicubic)")
    validation: ProperFraction = Field(
        default=0.1,
        description="share of each source's identities that are not trained on but make its own test; more of them "
        "where guessing would score a mAP above 1/2, two at least",
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed by which these identities are drawn; independent of the run's seed"
    )


class _File(NamedTuple):
    path: Path
    identity: int
    camera: int


@dataclass
class _Reading:
    """The files that one call of `load` reads, and those that it leaves out."""

    pictures: PictureReader
    broken: Gathered
    listings: list[Listing] = field(default_factory=list)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return (*(left for listing in self.listings for left in listing.left_out), *self.pictures.left_out)


class Market:
    """Your own person re-ID data: folders in the layout of Market-1501, several sources, one unseen target.

    Pictures of identity -1 (“junk”) are left out. Pictures of identity 0 in the target's gallery are distractors and
    are kept. Each source is a domain, and each camera of a source a group. Identities and cameras of different sources
    are different.
    """

    Settings = MarketSettings
    held_out_classes = True

    def __init__(self, settings: MarketSettings) -> None:
        self.settings = settings
        self.roots = {name: Path(path).expanduser() for name, path in settings.sources.items()}
        self.target = Path(settings.target).expanduser() if settings.target else None

    def _folders(self) -> list[tuple[str, Path]]:
        """Every folder that is read, after the key it comes from."""
        wanted = [(f"{_KEY}.sources.{name}", root / _TRAIN) for name, root in self.roots.items()]
        held = [(f"{_KEY}.target", self.target / part) for part in (_QUERY, _GALLERY)] if self.target else []
        return wanted + held

    def missing(self) -> str | None:
        absent = [str(folder) for _, folder in self._folders() if not folder.is_dir()]
        fix = "put the data there, or set data.source.sources and data.source.target"
        return f"no folder {absent[0]}; {fix}" if absent else None

    def load(self, seed: int) -> Dataset:
        at = _Reading(PictureReader(_KEY), Gathered("pictures"))
        for key, folder in self._folders():
            if not folder.is_dir():
                raise DataError(key, str(folder.parent), f"a folder that holds {folder.name}/", "check the path")
        files = {name: self._files(f"{_KEY}.sources.{name}", root / _TRAIN, at) for name, root in self.roots.items()}
        parts = {name: self._divided(name, found) for name, found in files.items()}
        people = sorted({(name, file.identity) for name, found in files.items() for file in found})
        cameras = sorted({(name, file.camera) for name, found in files.items() for file in found})
        identity = {key: code for code, key in enumerate(people)}
        camera = {key: code for code, key in enumerate(cameras)}
        domains = tuple(files)

        def samples(split: int) -> Samples:
            rows = [(name, file) for name in files for file in parts[name][split]]
            seen = np.array([camera[name, file.camera] for name, file in rows], dtype=np.int64)
            columns = {
                "image": self._read([file for _, file in rows], at),
                "label": np.array([identity[name, file.identity] for name, file in rows], dtype=np.int64),
                "camera": seen,
                "group": seen,
                "domain": np.array([domains.index(name) for name, _ in rows], dtype=np.int64),
            }
            names = tuple(f"{name}-{number:04d}" for name, number in people)
            return Samples(columns, names, domains, tuple(f"{name}-c{number}" for name, number in cameras))

        train, test = samples(0), samples(1)
        server = self._unseen(self.target, at) if self.target else {}
        at.broken.settle()
        warnings = tuple(warning for listing in at.listings for warning in listing.warnings)
        return Dataset("market", train, test, server, left_out=at.left_out, warnings=warnings)

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random pictures of people instead of those that are not here."""
        s, domains = self.settings, tuple(self.roots)
        people = tuple(f"{domains[number % len(domains)]}-{number:04d}" for number in range(wanted.classes))
        cameras = tuple(f"{name}-c{number}" for name in domains for number in (1, 2))

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            # few identities of a small draw, so that each has as many pictures as a batch takes of it
            shown = max(len(domains), min(wanted.classes, draws.count // _PICTURES))
            label = np.arange(draws.count) % (shown - shown % len(domains))
            domain = label % len(domains)
            camera = 2 * domain + np.arange(draws.count) // shown % 2
            made = {"image": draws.pictures(3, s.height, s.width), "label": label, "camera": camera}
            return {**made, "group": camera, "domain": domain} if split in ("train", "test") else made

        sets = ("train", "test", *(("query", "gallery") if self.target else ()))
        parts = {split: columns(split) for split in sets}
        own = {split: Samples(parts[split], people, domains, cameras) for split in ("train", "test")}
        unseen = {split: Samples(parts[split], people) for split in sets[2:]}
        return Dataset("market", own["train"], own["test"], unseen)

    def _unseen(self, root: Path, at: _Reading) -> dict[str, Samples]:
        """Query and gallery of the target."""
        found = {part: self._files(f"{_KEY}.target", root / part, at) for part in (_QUERY, _GALLERY)}
        cameras: dict[int, set[int]] = {}
        for file in found[_GALLERY]:
            cameras.setdefault(file.identity, set()).add(file.camera)
        if not any(cameras.get(file.identity, set()) - {file.camera} for file in found[_QUERY]):
            raise DataError(
                f"{_KEY}.target",
                str(root),
                "at least one query whose identity is in the gallery under another camera",
                "check data.source.pattern: it must find identities and cameras",
            )
        people = sorted({file.identity for files in found.values() for file in files})
        code = {identity: position for position, identity in enumerate(people)}
        names = tuple(f"{identity:04d}" for identity in people)

        def samples(files: list[_File]) -> Samples:
            columns = {
                "image": self._read(files, at),
                "label": np.array([code[file.identity] for file in files], dtype=np.int64),
                "camera": np.array([file.camera for file in files], dtype=np.int64),
                "domain": np.zeros(len(files), dtype=np.int64),
            }
            return Samples(columns, names, ("target",))

        return {"query": samples(found[_QUERY]), "gallery": samples(found[_GALLERY])}

    def _files(self, key: str, folder: Path, at: _Reading) -> list[_File]:
        """Pictures of the folder in order of their names, junk left out."""
        pattern, found = re.compile(self.settings.pattern), []
        listing = Listing(key, folder)
        at.listings.append(listing)

        def take(_: int, path: Path) -> None:
            match = pattern.search(path.name)
            try:
                file = _File(path, int(match["identity"]), int(match["camera"])) if match else None
            except (TypeError, ValueError):
                file = None
            if file is None:
                raise DataError(
                    key,
                    str(path),
                    f"a name in which {self.settings.pattern} finds two whole numbers",
                    "rename it as 0002_c1s1_000451_03.jpg is, or change data.source.pattern",
                )
            if file.identity == _JUNK:
                listing.skip(path, f"their identity, {_JUNK}, means junk", what="pictures")
            else:
                found.append(file)

        read_each(listing.files(folder, is_picture, UNREAD), take, "names")
        if not found:
            raise DataError(
                key, str(folder), "pictures of known identities", "files end in .jpg, .png or as Pillow knows them"
            )
        return found

    def _divided(self, name: str, files: list[_File]) -> tuple[list[_File], list[_File]]:
        """Files to train on, and the files of the identities that are kept for the test."""
        people, key = sorted({file.identity for file in files}), f"{_KEY}.sources.{name}"
        if len(people) < _LEAST_TRAINED + _LEAST_HELD:
            expected = f"at least {_LEAST_TRAINED + _LEAST_HELD}: two to train, and two to tell apart in the test"
            raise DataError(key, f"{len(people)} identities", expected, "use a source of more identities")
        rng = numpy_generator(self.settings.data_seed, "market validation", name)
        order = [people[position] for position in rng.permutation(len(people)).tolist()]
        most = len(people) - _LEAST_TRAINED
        count = min(max(_LEAST_HELD, int(len(people) * self.settings.validation)), most)
        held = set(order[:count])
        while (chance := _chance([f for f in files if f.identity in held])) > _MOST_CHANCE and len(held) < most:
            held.add(order[len(held)])
        if chance > _MOST_CHANCE:
            raise DataError(
                key,
                f"{len(held)} of {len(people)} identities to test, among which guessing scores a mAP of {chance:.2f}",
                f"a test in which guessing scores at most {_MOST_CHANCE:g}",
                "use a source of more identities, or of more images of each",
            )
        return [f for f in files if f.identity not in held], [f for f in files if f.identity in held]

    def _read(self, files: list[_File], at: _Reading) -> np.ndarray:
        from PIL import Image

        s = self.settings
        images = np.zeros((len(files), 3, s.height, s.width), dtype=np.uint8)

        def read(row: int, file: _File) -> None:
            pixels = at.pictures.read(file.path, None, 3).transpose(1, 2, 0)
            resized = Image.fromarray(pixels).resize((s.width, s.height), Image.Resampling.BICUBIC)
            images[row] = np.asarray(resized).transpose(2, 0, 1)

        at.broken.read(files, read)
        return images


def _chance(files: Sequence[_File]) -> float:
    """The mAP of guessing if every image is searched among the others; 0 if no image has a match."""
    people, seen = Counter(f.identity for f in files), Counter((f.identity, f.camera) for f in files)
    found = []
    for file in files:
        same = seen[file.identity, file.camera]  # the camera rule leaves these out, the query among them
        right, images = people[file.identity] - same, len(files) - same
        if right:
            found.append(chance_precision(right, images))
    return float(np.mean(found)) if found else 0.0
