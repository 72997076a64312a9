"""Generated figures in three bands of clothing under cameras that change colors: re-identification, offline."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.files.images import to_uint8
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator

_BANDS = 3
_COLORS = np.array(
    [
        (0.85, 0.15, 0.15),
        (0.90, 0.55, 0.10),
        (0.85, 0.85, 0.20),
        (0.20, 0.70, 0.25),
        (0.15, 0.70, 0.75),
        (0.20, 0.30, 0.85),
        (0.60, 0.25, 0.75),
        (0.80, 0.80, 0.80),
    ],
    dtype=np.float32,
)
_TEXTURES = 3  # plain, striped, chequered
_OUTFITS = (len(_COLORS) * _TEXTURES) ** _BANDS
Side = Annotated[int, Field(ge=12, le=512)]


class PedestriansSettings(Section):
    """Settings of the pedestrians source."""

    sites: Positive = Field(default=4, description="number of source domains; each has its own cameras and identities")
    cameras: Positive = Field(default=2, description="number of cameras of each site and of the target domain")
    identities: Positive = Field(default=20, description="number of training identities of each site")
    images: Positive = Field(default=6, description="images of each identity, distributed over the cameras of the site")
    test_identities: int = Field(
        default=5, ge=2, description="number of further identities of each site, for its own test"
    )
    target_identities: int = Field(default=60, ge=2, description="number of identities of the unseen target domain")
    gallery_images: Positive = Field(default=2, description="gallery images of a target identity under each camera")
    height: Side = Field(default=48, description="height of an image in pixels")
    width: Side = Field(default=24, description="width of an image in pixels")
    strength: float = Field(
        default=1.0, ge=0, le=2, description="how strongly the cameras change colors; 0: not at all"
    )
    data_seed: int = Field(default=0, ge=0, description="seed of all images; independent of the run's seed")


class Pedestrians:
    """Generated figures in three clothing bands seen by cameras of several sites: PAT's acceptance data (offline).

    Every band has a color and a texture of one vocabulary that all sites share, so different people have parts in
    common; no two people wear the same three. A camera has its own color gains, offsets and background. The server
    holds ``query`` and ``gallery`` of a site whose cameras and people occur nowhere else, and ``probe``, further images
    of the training identities with the color of each band (column ``colours``). A site is a domain, a camera a group.
    """

    Settings = PedestriansSettings
    held_out_classes = True

    def __init__(self, settings: PedestriansSettings) -> None:
        self.settings = settings

    def missing(self) -> str | None:
        return None

    def load(self, seed: int) -> Dataset:
        s = self.settings
        counts = {"train": s.sites * s.identities, "test": s.sites * s.test_identities, "target": s.target_identities}
        if sum(counts.values()) > _OUTFITS:
            raise DataError(
                "data.source.identities",
                s.identities,
                f"at most {_OUTFITS} people in all",
                "the generator draws no more different outfits",
            )
        if s.images < s.cameras:
            raise DataError("data.source.images", s.images, f"at least one for each of {s.cameras} cameras")
        world = _World(s, sum(counts.values()))
        people = np.arange(counts["train"] + counts["test"])
        sites = np.concatenate(
            [people[: counts["train"]] // s.identities, people[: counts["test"]] // s.test_identities]
        )
        train, test = people[: counts["train"]], people[counts["train"] :]
        names = tuple(f"{site}-{person:04d}" for person, site in zip(people, sites, strict=True))
        target = counts["train"] + counts["test"] + np.arange(s.target_identities)
        target_names = tuple(f"target-{person:04d}" for person in target)
        repeats = {"query": 1, "gallery": s.gallery_images}
        held = {
            part: world.samples(part, target, np.full(len(target), s.sites), count * s.cameras, target_names)
            for part, count in repeats.items()
        }
        held["probe"] = world.samples("probe", train, sites[train], s.cameras, names)
        return Dataset(
            "pedestrians",
            world.samples("train", train, sites[train], s.images, names),
            world.samples("test", test, sites[test], s.images, names),
            held,
        )


class _World:
    """The outfits of all people, and the cameras.

    Args:
        settings: settings of the source.
        people: number of people.
    """

    def __init__(self, settings: PedestriansSettings, people: int) -> None:
        self.settings = settings
        codes = numpy_generator(settings.data_seed, "outfits").permutation(_OUTFITS)[:people]
        self.outfits = np.stack(np.unravel_index(codes, (len(_COLORS) * _TEXTURES,) * _BANDS), axis=1)
        looks = numpy_generator(settings.data_seed, "cameras")
        self.cameras = [_Camera(looks, settings.strength) for _ in range((settings.sites + 1) * settings.cameras)]

    def samples(
        self, split: str, people: np.ndarray, sites: np.ndarray, images: int, names: tuple[str, ...]
    ) -> Samples:
        """So many images of each person, dealt to the cameras of its site in turn."""
        s, rng = self.settings, numpy_generator(self.settings.data_seed, "images", split)
        who, site = np.repeat(people, images), np.repeat(sites, images)
        camera = site * s.cameras + np.tile(np.arange(images) % s.cameras, len(people))
        pixels = np.stack(
            [
                self.cameras[seen].photograph(self.outfits[person], s.height, s.width, rng)
                for person, seen in zip(who, camera, strict=True)
            ]
        )
        held = split in ("query", "gallery")
        columns = {
            "image": to_uint8(pixels),
            "label": who - people[0] if held else who,
            "camera": camera,
            "domain": np.zeros_like(site) if held else site,
        }
        if split == "probe":
            # spelled as it always was: columns' names are part of the fingerprint by which a resumed run knows its data
            columns["colours"] = self.outfits[who] // _TEXTURES
        if split in ("train", "test"):
            columns["group"] = camera
        groups = tuple(f"site{c // s.cameras}-camera{c % s.cameras}" for c in range(s.sites * s.cameras))
        domains = ("target",) if held else tuple(f"site{number}" for number in range(s.sites))
        return Samples(columns, names, domains, groups)


class _Camera:
    """What a camera does to a picture: gains and offsets of the color channels, and a background."""

    def __init__(self, rng: np.random.Generator, strength: float) -> None:
        self.gain = (1 + strength * rng.uniform(-0.35, 0.35, 3)).astype(np.float32)
        self.offset = (strength * rng.uniform(-0.12, 0.12, 3)).astype(np.float32)
        self.ground = rng.uniform(0.2, 0.8, (2, 3)).astype(np.float32)

    def photograph(self, outfit: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """One picture (3, height, width) in [0, 1] of a person in this outfit, standing a little elsewhere each time.

        Args:
            outfit: (3,) of color · textures + texture, from top to bottom.
            height: pixels.
            width: pixels.
            rng: draws place, light, texture phases and noise.
        """
        rows, columns = np.mgrid[:height, :width]
        slope = rows[..., None] / height
        picture = (1 - slope) * self.ground[0] + slope * self.ground[1]
        middle = width / 2 + rng.uniform(-0.1, 0.1) * width
        half = rng.uniform(0.28, 0.4) * width
        edges = height * (np.arange(_BANDS + 1) / _BANDS + np.append(0, rng.uniform(-0.04, 0.04, _BANDS)))
        edges[0], edges[-1] = 0.05 * height, 0.97 * height
        for band, code in enumerate(outfit):
            inside = (rows >= edges[band]) & (rows < edges[band + 1]) & (np.abs(columns + 0.5 - middle) < half)
            cloth = _texture(code % _TEXTURES, rows, columns, rng)[..., None] * _COLORS[code // _TEXTURES]
            picture = np.where(inside[..., None], cloth, picture)
        picture = picture * rng.uniform(0.85, 1.15) * self.gain + self.offset
        picture = picture + 0.05 * rng.standard_normal(picture.shape)
        image: np.ndarray = np.clip(picture, 0, 1).transpose(2, 0, 1).astype(np.float32)
        return image


def _texture(kind: int, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Factor of the color at every pixel: 0 plain, 1 striped, 2 chequered."""
    down, across = rng.integers(0, 6, 2)
    stripes = (rows + down) // 3 % 2
    pattern = (np.zeros_like(rows), stripes, (stripes + (columns + across) // 3) % 2)[kind]
    return np.where(pattern, 0.45, 1.0)
