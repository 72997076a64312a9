"""scikit-learn's digits under noise, so that some of them are much harder than others."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.files.images import resize
from fedlab.data.generated import digits
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource, seed_of
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator


class NoisyDigitsSettings(Section):
    """Settings of the noisy-digits source."""

    size: int = Field(default=8, ge=8, le=64, description="height and width in pixels")
    noise: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.25,),
        min_length=1,
        description="standard deviations of the Gaussian noise, where white is 1; each is a domain, and the images are "
        "shared out evenly",
    )
    shift: int = Field(default=0, ge=0, le=8, description="largest random move of an image, in pixels")
    train_copies: Positive = Field(
        default=1,
        description="copies of every training image, each with its own noise and move. With as many copies as epochs, "
        "an image has new noise whenever it is used",
    )
    test_copies: Positive = Field(default=1, description="the same of every test image")
    train_size: Positive | None = Field(
        default=None, description="number of training images before copying; default: all"
    )
    test_size: Positive = Field(
        default=500, description="number of images at the end of the file that are the test set"
    )
    data_seed: int | None = Field(default=0, ge=0, description="seed of noise and moves; null: the run's seed")


class NoisyDigits(MadeSource[NoisyDigitsSettings]):
    """scikit-learn's 1,797 handwritten digits, 8×8 gray, under noise of one or several strengths (offline).

    The last images of the file, which are by other writers, are the test set.
    """

    Settings = NoisyDigitsSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        images, labels = digits.handwritten()
        if s.test_size >= len(labels):
            raise DataError("data.source.test_size", s.test_size, f"fewer than the {len(labels)} images there are")
        first = len(labels) - s.test_size
        if (s.train_size or 0) > first:
            expected = f"at most the {first} images that are left by test_size: {s.test_size}"
            raise DataError("data.source.train_size", s.train_size, expected)
        images, drawn = resize(images, s.size), seed_of(s.data_seed, seed)

        def samples(split: str, part: slice, copies: int) -> Samples:
            rng = numpy_generator(drawn, "noisy digits", split)
            count = copies * len(labels[part])
            domain = np.arange(count) % len(s.noise)
            columns = {
                "image": digits.noisy_copies(images[part], copies, s.shift, np.array(s.noise)[domain], rng),
                "label": np.tile(labels[part], copies),
                "domain": domain,
            }
            return Samples(columns, tuple("0123456789"), tuple(f"noise {level:g}" for level in s.noise))

        train = samples("train", slice(s.train_size or first), s.train_copies)
        return Dataset("noisy_digits", train, samples("test", slice(first, None), s.test_copies))
