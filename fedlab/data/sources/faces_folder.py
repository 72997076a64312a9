"""Pictures of faces from folders, real and fake, by video, with region maps for pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedlab.config import Fraction, Positive, Section
from fedlab.data.classes import test_part
from fedlab.data.files.images import UNREAD, PictureReader, is_picture, resize
from fedlab.data.files.listing import Listing
from fedlab.data.files.reading import read_each
from fedlab.data.files.regions import ENDING, MapFiles, Numbering, RegionProvider, SegFormerParser, Template
from fedlab.data.files.spelling import one_form
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.faces import CLASSES, FACES, FAKE, REAL
from fedlab.data.stand_in import Draws, Wanted
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import InputPath, MadePath
from fedlab.tracking.left_out import LeftOut

_SPLITS = ("train", "test")
_KEY = "data.source.path"


class FacesFolderSettings(Section):
    """Settings of the faces_folder source."""

    path: InputPath = Field(
        description="root folder: train/ and test/, or neither, in which case videos are drawn for the test. In each, "
        "[domain/]class/video/*.png, or [domain/]class/*.png where each picture is a video of its own. server/<name>/ "
        "with the same folders are sample sets that the server holds"
    )
    real: tuple[str, ...] = Field(
        default=("real",), min_length=1, description="names of the class folders with labeled real faces"
    )
    fake: tuple[str, ...] = Field(
        default=("fake",), min_length=1, description="names of the class folders with fakes, such as those of FF++"
    )
    unlabeled: tuple[str, ...] = Field(
        default=("unlabeled",), description="names of the class folders with real faces for pre-training only"
    )
    size: int = Field(default=224, ge=16, description="height and width to which pictures are resized")
    frames: Positive | None = Field(
        default=None, description="number of pictures that are used of each video, evenly spaced; default: all"
    )
    regions: Literal["files", "segformer", "template", "none"] = Field(
        default="files",
        description="where the region maps of real faces come from. files: from face.npy beside face.png; segformer: "
        "from the face parser in data.source.parser; template: ellipses, the same for all faces, which is only an "
        "approximation; none: there are none, so that nothing can be pre-trained",
    )
    numbering: Numbering = Field(
        default="lapa",
        description="classes in the files: lapa, numbers 0 to 10 in the order background, skin, right and left brow, "
        "right and left eye, nose, upper lip, inner mouth, lower lip, hair; celebamask, 0 to 18 as in CelebAMask-HQ",
    )
    parser: InputPath | None = Field(
        default=None, description="folder with a face parser, a SegFormer that transformers has saved"
    )
    cache: MadePath | None = Field(
        default=None, description="folder in which the parser's maps are kept; default: the user's cache folder"
    )
    test_fraction: Fraction = Field(
        default=0.2, lt=1, description="share of the videos of each class and domain that is drawn for the test"
    )
    data_seed: int = Field(default=0, ge=0, description="seed by which test videos are drawn")


class _Video(NamedTuple):
    frames: list[Path]  # those that are used
    there: int  # how many there are
    domain: str
    kind: str  # name of the class folder
    name: str

    @property
    def owner(self) -> str:
        return "/".join(part for part in (self.domain, self.kind, self.name) if part)


class FacesFolder:
    """Your own faces: folders of real and fake videos or pictures, with region maps beside them or from a parser.

    The columns are those of the source `faces`. A domain folder becomes a domain, and each video an owner, so that
    neither the test split nor the partition steps `domain` and `natural` ever divide a video.
    """

    Settings = FacesFolderSettings

    def __init__(self, settings: FacesFolderSettings) -> None:
        self.settings = settings
        self.root = Path(settings.path).expanduser()
        names = [*settings.real, *settings.fake, *settings.unlabeled]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError("data.source.real, fake, unlabeled", twice, "names that differ", "list each of them once")
        if settings.regions == "segformer" and settings.parser is None:
            raise DataError("data.source.parser", None, "the folder of a face parser", "set it, or another regions")

    def missing(self) -> str | None:
        return None if self.root.is_dir() else f"no folder {self.root}; set {_KEY} to the folder of the faces"

    def load(self, seed: int) -> Dataset:
        if self.missing():
            raise DataError(_KEY, self.settings.path, "a folder of faces", "check the path")
        listing, reader = Listing(_KEY, self.root), PictureReader(_KEY)
        splits = self._splits(listing)
        for split, videos in splits.items():
            if not videos:
                found = "; ".join(str(left) for left in listing.left_out) or "add pictures"
                raise DataError(_KEY, str(self.root), f"{split} pictures in [domain/]class/[video/]", found)
        held = self.root / "server"
        sets = {one_form(f.name): self._videos(f, listing) for f in (listing.folders(held) if held.is_dir() else ())}
        every = [video for part in splits.values() for video in part]
        domains = tuple(sorted({video.domain for video in every}))
        owners = tuple(dict.fromkeys(video.owner for video in every))
        notes: list[LeftOut] = []
        made = {split: self._samples(part, domains, owners, reader, notes) for split, part in splits.items()}
        server = {
            name: self._samples(
                part,
                tuple(sorted({video.domain for video in part})),
                tuple(video.owner for video in part),
                reader,
                notes if name == FACES else None,
            )
            for name, part in sets.items()
            if part
        }
        unused = [video.there - len(video.frames) for part in (*splits.values(), *sets.values()) for video in part]
        if any(unused):
            total = sum(video.there for part in (*splits.values(), *sets.values()) for video in part)
            why = "data.source.frames limits the pictures of a video"
            notes.append(LeftOut("frames", sum(unused), why, total, wanted=True))
        left_out = (*listing.left_out, *reader.left_out, *_summed(notes))
        return Dataset(self.root.name, made["train"], made["test"], server, left_out=left_out)

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random pictures instead of those that are not here: half of them unlabeled, and videos of two frames."""
        s = self.settings
        template = Template().maps([], [], np.zeros((1, 3, s.size, s.size), np.uint8)).regions[0]

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            video = np.arange(draws.count) // 2
            domain, label = video % wanted.domains, video // wanted.domains % 2
            made = {
                "image": draws.pictures(3, s.size, s.size),
                "label": np.where(label == 1, FAKE, REAL).astype(np.int64),
                "labeled": np.full(draws.count, True) if split == "test" else draws.dealt(2).astype(bool),
                "frames": np.bincount(video)[video],
                "domain": domain,
                "group": video,
            }
            made["labeled"] |= made["label"] == FAKE
            mapped = {} if s.regions == "none" else {"regions": np.repeat(template[None], draws.count, 0)}
            return made | mapped | ({"mapped": made["label"] == REAL} if mapped else {})

        parts = {split: columns(split) for split in ("train", "test", FACES)}
        names = tuple(f"video {number}" for number in range(max(len(part["group"]) for part in parts.values())))
        samples = {split: Samples(part, CLASSES, wanted.domain_names, names) for split, part in parts.items()}
        train, test = samples.pop("train"), samples.pop("test")
        return Dataset("faces", train, test, samples)

    # files

    def _splits(self, listing: Listing) -> dict[str, list[_Video]]:
        """The folder's own train and test parts, or drawn ones."""
        present = [split for split in _SPLITS if (self.root / split).is_dir()]
        if len(present) == 2:
            for other in listing.folders(self.root):
                if other.name not in (*_SPLITS, "server"):
                    listing.skip_below(other, "their folder lies beside train and test")
            return {split: self._videos(self.root / split, listing) for split in _SPLITS}
        if present:
            absent = next(split for split in _SPLITS if split not in present)
            fix = f"add {absent}/, or put the folders of domains or classes directly into {self.root}"
            raise DataError(_KEY, str(self.root / present[0]), f"a folder {absent!r} beside it", fix)
        parts: dict[str, list[_Video]] = {split: [] for split in _SPLITS}
        by_kind: dict[tuple[str, str], list[_Video]] = {}
        for video in self._videos(self.root, listing):
            by_kind.setdefault((video.domain, video.kind), []).append(video)
        for (domain, kind), members in sorted(by_kind.items()):
            rng = numpy_generator(self.settings.data_seed, "faces split", domain, kind)
            count = test_part(len(members), int(len(members) * self.settings.test_fraction))
            tested = set() if kind in self.settings.unlabeled else set(rng.permutation(len(members))[:count].tolist())
            for row, video in enumerate(members):
                parts["test" if row in tested else "train"].append(video)
        return parts

    def _videos(self, top: Path, listing: Listing) -> list[_Video]:
        """The videos below a folder of classes, or of domains with classes."""
        s = self.settings
        classes = (*s.real, *s.fake, *s.unlabeled)
        folders = [folder for folder in listing.folders(top) if folder.parent != self.root or folder.name != "server"]
        direct = [folder for folder in folders if one_form(folder.name) in classes]
        if direct:
            places = [("", direct, [folder for folder in folders if folder not in direct])]
        else:
            inside = {folder: listing.folders(folder) for folder in folders}
            places = [
                (
                    one_form(folder.name),
                    [kind for kind in kinds if one_form(kind.name) in classes],
                    [kind for kind in kinds if one_form(kind.name) not in classes],
                )
                for folder, kinds in inside.items()
            ]
        found: list[_Video] = []
        for domain, kinds, others in places:
            if others:
                fix = "name it in data.source.real, data.source.fake or data.source.unlabeled, or take it away"
                raise DataError(_KEY, str(others[0]), f"folders of the classes {', '.join(classes)}", fix)
            for kind in kinds:
                found += self._of_class(kind, domain, listing)
        return found

    def _of_class(self, folder: Path, domain: str, listing: Listing) -> list[_Video]:
        """Sub-folders of a class are videos, and loose pictures are videos of one frame."""
        by_video: dict[str, list[Path]] = {}
        for path in listing.below(folder, lambda path: is_picture(path) or self._is_map(path), UNREAD):
            if not self._is_map(path):
                place = path.relative_to(folder)
                name = place.parts[0] if len(place.parts) > 1 else place.name
                by_video.setdefault(one_form(name), []).append(path)
        if not by_video:
            listing.skip(folder, "there is no picture in them", what="class folders")
        most, videos = self.settings.frames, []
        for name, frames in by_video.items():
            kept = frames
            if most is not None and len(frames) > most:
                rows = set(np.linspace(0, len(frames) - 1, most).round().astype(int).tolist())
                kept = [frame for row, frame in enumerate(frames) if row in rows]
            videos.append(_Video(kept, len(frames), domain, one_form(folder.name), name))
        return videos

    def _is_map(self, path: Path) -> bool:
        return self.settings.regions == "files" and path.suffix == ENDING

    # samples

    def _samples(
        self,
        videos: Sequence[_Video],
        domains: tuple[str, ...],
        owners: tuple[str, ...],
        reader: PictureReader,
        notes: list[LeftOut] | None,
    ) -> Samples:
        s = self.settings
        rows = [(frame, video) for video in videos for frame in video.frames]
        images = np.empty((len(rows), 3, s.size, s.size), np.uint8)
        sizes: list[tuple[int, int]] = [(0, 0)] * len(rows)

        def read(row: int, file: tuple[Path, _Video]) -> None:
            whole = reader.read(file[0], None, 3)
            images[row], sizes[row] = resize(whole[None], s.size)[0], (whole.shape[1], whole.shape[2])

        read_each(rows, read, "pictures")
        owner = {name: code for code, name in enumerate(owners)}
        columns: dict[str, np.ndarray] = {
            "image": images,
            "label": np.array([FAKE if video.kind in s.fake else REAL for _, video in rows], np.int64),
            "labeled": np.array([video.kind not in s.unlabeled for _, video in rows], bool),
            "frames": np.array([len(video.frames) for _, video in rows], np.int64),
            "domain": np.array([domains.index(video.domain) for _, video in rows], np.int64),
            "group": np.array([owner[video.owner] for _, video in rows], np.int64),
        }
        provider = self._provider()
        if provider is not None:
            columns |= self._regions(provider, [frame for frame, _ in rows], sizes, columns, notes)
        return Samples(columns, CLASSES, tuple(name or "all" for name in domains), owners)

    def _provider(self) -> RegionProvider | None:
        s = self.settings
        if s.regions == "segformer":
            return SegFormerParser(str(s.parser), s.cache)
        if s.regions == "none":
            return None
        return MapFiles(s.numbering) if s.regions == "files" else Template()

    def _regions(
        self,
        provider: RegionProvider,
        files: Sequence[Path],
        sizes: Sequence[tuple[int, int]],
        columns: dict[str, np.ndarray],
        notes: list[LeftOut] | None,
    ) -> dict[str, np.ndarray]:
        """Maps of the real faces; those of fakes are never needed."""
        size, real = self.settings.size, np.flatnonzero(columns["label"] == REAL)
        rows: list[int] = real.tolist()
        found = provider.maps([files[row] for row in rows], [sizes[row] for row in rows], columns["image"][real])
        regions, known = np.zeros((len(files), size, size), np.uint8), np.zeros(len(files), bool)
        regions[real], known[real] = found.regions, found.known
        lost = [str(files[row].relative_to(self.root)) for row in real[~found.known].tolist()]
        if lost and notes is not None:
            why = {
                "files": "there is no .npy file of their name beside them, so they are not used for pre-training",
                "segformer": "the parser finds no face in them, so they are not used for pre-training",
            }[self.settings.regions]
            notes.append(LeftOut("region maps", len(lost), why, len(real), "", tuple(lost[:10])))
        if self.settings.regions == "template" and len(real) and notes is not None:
            why = "data.source.regions = template lays the same ellipses over every face, which only approximates them"
            fix = "give maps beside the pictures, or a face parser"
            notes.append(LeftOut("exact region maps", len(real), why, len(real), fix))
        return {"regions": regions, "mapped": known}


def _summed(notes: Sequence[LeftOut]) -> list[LeftOut]:
    """Notes of several splits, those of the same things added up."""
    by_kind: dict[tuple[str, str, bool], LeftOut] = {}
    for note in notes:
        by_kind[note.kind] = by_kind[note.kind] + note if note.kind in by_kind else note
    return list(by_kind.values())
