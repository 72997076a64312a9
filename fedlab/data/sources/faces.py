"""Generated faces with exact region maps, real and fake, in domains of different light, noise and background."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.generated.faces import Fake, draw_faces, draw_looks, scene
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource, seed_of
from fedlab.seeding import numpy_generator

FAKE, REAL = 0, 1
FACES = "faces"
"""Name of the server's set of real faces with region maps."""
CLASSES = ("fake", "real")
"""The classes of all sources of faces: what is real has the higher number, whatever folders are called."""


class FacesSettings(Section):
    """Settings of the faces source."""

    size: int = Field(default=32, ge=24, le=256, description="height and width in pixels")
    domains: Positive = Field(
        default=5, description="number of domains; from the first to the last, light and noise become stronger"
    )
    pretrain: int = Field(default=400, ge=0, description="number of unlabeled real faces of each domain, for training")
    train: int = Field(default=200, ge=2, description="number of labeled videos of each domain, half of them fakes")
    test: int = Field(default=200, ge=2, description="number of test videos of each domain, half of them fakes")
    last_test: int | None = Field(
        default=None, ge=2, description="number of test videos of the last domain; default: as many as of the others"
    )
    frames: Positive = Field(default=1, description="number of pictures of each video")
    server: int = Field(
        default=200, ge=0, description="number of real faces of all domains in the server's sample set 'faces'"
    )
    fake: Fake = Field(default="eyes", description="part of a fake face that has the colors of another person")
    unite: bool = Field(
        default=False,
        description="put all domains but the last into one, for training in one place: the partition step `domain` "
        "then makes two clients",
    )
    data_seed: int | None = Field(default=0, ge=0, description="seed of the faces; null: the run's seed")


class FaceSource(MadeSource[FacesSettings]):
    """Generated faces with region maps: real ones, and fakes with somebody else's eyes, in several domains (offline).

    Columns beside the picture: ``regions`` (n, S, S), the classes of `fedlab.data.regions`; ``label``, 1 for real;
    ``labeled``, whether the label may be used (unlabeled faces are real ones for pre-training); ``mapped``, whether
    the region map is known; ``group``, the video; ``frames``, the number of pictures of that video.
    """

    Settings = FacesSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        drawn = seed_of(s.data_seed, seed)
        last = s.test if s.last_test is None else s.last_test
        train, test = _Videos(s, drawn, "train"), _Videos(s, drawn, "test")
        held = _Videos(s, drawn, "server")
        for domain in range(s.domains):
            train.add(domain, s.pretrain, labeled=False)
            train.add(domain, s.train)
            test.add(domain, last if domain == s.domains - 1 else s.test)
            held.add(domain, s.server // s.domains, labeled=False)
        owners = tuple(dict.fromkeys([*train.names, *test.names]))
        server = {FACES: held.samples(tuple(dict.fromkeys(held.names)))} if s.server >= s.domains else {}
        return Dataset("faces", train.samples(owners), test.samples(owners), server)


class _Videos:
    """Collects the videos of one split."""

    def __init__(self, settings: FacesSettings, seed: int, split: str) -> None:
        self._settings, self._seed, self._split = settings, seed, split
        self._parts: dict[str, list[np.ndarray]] = {}
        self.names: list[str] = []

    def add(self, domain: int, videos: int, labeled: bool = True) -> None:
        """Add videos of a domain: labeled ones, of which every second is a fake, or real ones of one picture each."""
        s = self._settings
        kind = "labeled" if labeled else "unlabeled"
        rng = numpy_generator(self._seed, "faces", self._split, domain, kind)
        frames = s.frames if labeled else 1
        label = np.arange(videos) % 2 if labeled else np.ones(videos, np.int64)
        taken = scene(domain, s.domains)
        pixels = np.empty((videos, frames, 3, s.size, s.size), np.uint8)
        regions = np.empty((videos, frames, s.size, s.size), np.uint8)
        parts: tuple[tuple[int, Fake | None], ...] = ((REAL, None), (FAKE, s.fake))
        for value, part in parts:
            rows = np.flatnonzero(label == value)
            looks, donors = draw_looks(len(rows), rng), draw_looks(len(rows), rng)
            for frame in range(frames):
                made = draw_faces(looks, s.size, taken, rng, fake=part, donors=donors)
                pixels[rows, frame] = np.rint(made.pixels * 255)
                regions[rows, frame] = made.regions
        names = [f"{self._domains[domain]}/{self._split} {kind} {number}" for number in range(videos)]
        self.names += [name for name in names for _ in range(frames)]
        count = videos * frames
        columns: dict[str, np.ndarray] = {
            "image": pixels.reshape(count, 3, s.size, s.size),
            "regions": regions.reshape(count, s.size, s.size),
            "label": np.repeat(label, frames).astype(np.int64),
            "labeled": np.full(count, labeled),
            "mapped": np.ones(count, bool),
            "frames": np.full(count, frames),
            "domain": np.full(count, domain),
        }
        for name, values in columns.items():
            self._parts.setdefault(name, []).append(values)

    @property
    def _domains(self) -> tuple[str, ...]:
        return tuple(f"place {number + 1}" for number in range(self._settings.domains))

    def samples(self, owners: tuple[str, ...]) -> Samples:
        """All that was added; `owners` are the names of all videos."""
        s = self._settings
        columns = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        place = {name: code for code, name in enumerate(owners)}
        columns["group"] = np.array([place[name] for name in self.names], np.int64)
        names = self._domains
        if s.unite and s.domains > 1:
            columns["domain"] = (columns["domain"] == s.domains - 1).astype(np.int64)
            names = ("all other places", names[-1])
        return Samples(columns, CLASSES, names, owners)
