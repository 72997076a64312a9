"""Generated images of eight kinds of silhouettes, in one or more styles."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, Section
from fedlab.data.files.images import to_uint8
from fedlab.data.generated.silhouettes import KINDS, STYLES, draw_silhouettes
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource, seed_of
from fedlab.seeding import numpy_generator

Style = Literal["photo", "gray", "sketch", "poster"]


def _distinct(styles: tuple[Style, ...]) -> tuple[Style, ...]:
    if not styles or len(set(styles)) < len(styles):
        raise ValueError("at least one style, each at most once")
    return styles


class SilhouettesSettings(Section):
    """Settings of the silhouettes source."""

    train: Positive = Field(default=2000, description="number of training images, which are divided among the clients")
    test: Positive = Field(default=1000, description="number of test images, which the server holds as well")
    teacher: int = Field(
        default=2000, ge=0, description="number of labeled images in the server's sample set 'teacher'"
    )
    probe: int = Field(default=1000, ge=0, description="number of labeled images in the server's sample set 'probe'")
    size: int = Field(default=24, ge=8, le=256, description="height and width in pixels")
    styles: Annotated[tuple[Style, ...], AfterValidator(_distinct)] = Field(
        default=("photo",),
        description="domains among which the images are divided evenly: photo (in color on a smooth background); gray; "
        "sketch (an outline on bright ground); poster (on a ground of one color)",
    )
    data_seed: int | None = Field(default=0, ge=0, description="seed of the images; null: the run's seed")


class Silhouettes(MadeSource[SilhouettesSettings]):
    """Generated images: eight kinds of silhouettes, turned, scaled and moved, in up to four styles (offline).

    Columns: ``image`` (3, size, size), ``label``, ``domain`` (the style). The server holds ``teacher``, ``probe`` and
    ``test``, whose images are of all styles.
    """

    Settings = SilhouettesSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        drawn = seed_of(s.data_seed, seed)
        test = self._samples("test", s.test, drawn)
        held = {name: count for name, count in (("teacher", s.teacher), ("probe", s.probe)) if count}
        server = {name: self._samples(name, count, drawn) for name, count in held.items()}
        return Dataset("silhouettes", self._samples("train", s.train, drawn), test, {**server, "test": test})

    def _samples(self, split: str, count: int, seed: int) -> Samples:
        s = self.settings
        rng = numpy_generator(seed, "silhouettes", split)
        labels, domains = (rng.permutation(np.arange(count) % kinds) for kinds in (len(KINDS), len(s.styles)))
        styles = np.array([STYLES.index(name) for name in s.styles])[domains]
        images = to_uint8(draw_silhouettes(labels, styles, s.size, rng))
        return Samples({"image": images, "label": labels, "domain": domains}, KINDS, s.styles)
