"""Generated tiles of stained tissue, cut from slides of several laboratories."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.generated.tiles import LEVELS, draw_tiles
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource, seed_of
from fedlab.seeding import numpy_generator

_LABS = 4
_NUCLEI = ("few small", "many small", "few large", "many large")
_STROMA = ("0°", "45°", "90°", "135°")


class TilesSettings(Section):
    """Settings of the tiles source."""

    train: Positive = Field(default=2000, description="number of training tiles, which are divided among the clients")
    test: Positive = Field(default=400, description="number of test tiles, which are divided among the clients")
    probe: int = Field(default=1000, ge=0, description="number of tiles in the server's sample set 'probe'")
    server_test: int = Field(default=1000, ge=0, description="number of tiles in the server's sample set 'test'")
    per_slide: Positive = Field(default=20, description="number of tiles of a slide, all with the same kind of nuclei")
    domains: Literal["nuclei", "laboratory"] = Field(
        default="nuclei",
        description="what the domains are: the kind of nuclei, or the laboratory that stained the slide",
    )
    noise: float = Field(default=0.05, ge=0, le=1, description="standard deviation of the noise of pixels in [0, 1]")
    data_seed: int | None = Field(default=0, ge=0, description="seed of the tiles; null: the run's seed")


class TileSource(MadeSource[TilesSettings]):
    """Generated tiles of stained tissue with two independent factors, cut from slides (offline).

    Column ``nuclei`` is the kind of the nuclei, ``stroma`` the direction of the fibers, and ``label`` both together, of
    16 classes. The owner of a tile is its slide, which one of four laboratories has stained.
    """

    Settings = TilesSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        drawn = seed_of(s.data_seed, seed)
        held = {"probe": s.probe, "test": s.server_test}
        return Dataset(
            "tiles",
            self._samples("train", s.train, drawn),
            self._samples("test", s.test, drawn),
            {name: self._samples(f"server {name}", count, drawn) for name, count in held.items() if count},
        )

    def _samples(self, split: str, count: int, seed: int) -> Samples:
        s = self.settings
        rng = numpy_generator(seed, "tiles", split)
        trained, tested = (-(-part // s.per_slide) for part in (s.train, s.test))
        slide = np.arange(count) // s.per_slide
        kind, laboratory = slide % LEVELS, slide // LEVELS % _LABS
        # laboratories stain differently, and every slide of one a little
        shift = (laboratory / (_LABS - 1) - 0.5)[:, None] * np.array([0.5, -0.5])
        stains = 1 + shift + rng.normal(0, 0.05, (int(slide[-1]) + 1, 2))[slide]
        tiles = draw_tiles(kind, stains, s.noise, rng)
        by_kind = s.domains == "nuclei"
        names = tuple(f"laboratory {number + 1}" for number in range(_LABS))
        return Samples(
            {
                "image": tiles.pixels,
                "label": tiles.nuclei * LEVELS + tiles.stroma,
                "nuclei": tiles.nuclei,
                "stroma": tiles.stroma,
                "group": slide + trained if split == "test" else slide,
                "domain": kind if by_kind else laboratory,
            },
            tuple(f"{nuclei}, {stroma}" for nuclei in _NUCLEI for stroma in _STROMA),
            _NUCLEI if by_kind else names,
            tuple(f"slide {number + 1}" for number in range(max(trained + tested, int(slide[-1]) + 1))),
        )
