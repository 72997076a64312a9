"""scikit-learn's digits unchanged. The last images of the file, which are by other writers, are the test set."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.files.images import resize, to_channels
from fedlab.data.generated import digits
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource
from fedlab.errors import DataError


class HandwrittenSettings(Section):
    """Settings of the handwritten source."""

    size: int = Field(default=16, ge=8, le=64, description="height and width in pixels")
    channels: Literal[1, 3] = Field(default=1, description="3: RGB, 1: gray")
    test_size: Positive = Field(
        default=500, description="number of images at the end of the file that are the test set"
    )


class Handwritten(MadeSource[HandwrittenSettings]):
    """scikit-learn's 1,797 handwritten digits, 16×16 gray, tested on the file's last 500 (offline)."""

    Settings = HandwrittenSettings

    def load(self, seed: int) -> Dataset:
        settings = self.settings
        images, labels = digits.handwritten()
        if settings.test_size >= len(labels):
            raise DataError(
                "data.source.test_size", settings.test_size, f"fewer than the {len(labels)} images there are"
            )
        images = to_channels(resize(images, settings.size), settings.channels)
        first = len(labels) - settings.test_size

        def samples(part: slice) -> Samples:
            columns = {"image": images[part], "label": labels[part], "domain": np.zeros_like(labels[part])}
            return Samples(columns, tuple("0123456789"))

        return Dataset("handwritten", samples(slice(first)), samples(slice(first, None)))
