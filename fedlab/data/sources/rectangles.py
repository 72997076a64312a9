"""Generated pictures of colored rectangles with masks of objects and of colors."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.generated.rectangles import BACKGROUNDS, COLORS, draw_rectangles
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource, seed_of
from fedlab.seeding import numpy_generator


class RectanglesSettings(Section):
    """Settings of the rectangles source."""

    train: Positive = Field(default=600, description="number of training pictures, which are divided among the clients")
    test: Positive = Field(default=60, description="number of test pictures, which are divided among the clients")
    server_test: int = Field(default=60, ge=0, description="number of pictures in the server's sample set 'test'")
    noise: float = Field(default=0.05, ge=0, le=1, description="standard deviation of the noise of pixels in [0, 1]")
    data_seed: int | None = Field(default=0, ge=0, description="seed of the pictures; null: the run's seed")


class RectangleSource(MadeSource[RectanglesSettings]):
    """Generated pictures of four rectangles, two of the same color, with masks of objects and of colors (offline).

    Column ``instances`` has the numbers of the rectangles, ``mask`` the classes of the pixels, of which 0 is background
    and the others are colors, and ``label`` the class that two rectangles share. Domains are the backgrounds.
    """

    Settings = RectanglesSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        drawn = seed_of(s.data_seed, seed)
        held = {"test": self._samples("server test", s.server_test, drawn)} if s.server_test else {}
        return Dataset("rectangles", self._samples("train", s.train, drawn), self._samples("test", s.test, drawn), held)

    def _samples(self, split: str, count: int, seed: int) -> Samples:
        rng = numpy_generator(seed, "rectangles", split)
        domain = np.arange(count) % len(BACKGROUNDS)
        made = draw_rectangles(domain, self.settings.noise, rng)
        columns = {
            "image": made.pixels,
            "instances": made.instances,
            "mask": made.classes,
            "label": made.shared + 1,
            "domain": domain,
        }
        return Samples(columns, ("background", *COLORS), tuple(f"{name} ground" for name in BACKGROUNDS))
