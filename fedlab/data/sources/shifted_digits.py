"""scikit-learn's digits under five generated domain shifts: small, quick, and hard enough to tell methods apart."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, Section
from fedlab.data.files.images import resize, to_channels
from fedlab.data.generated import digits
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource
from fedlab.errors import DataError
from fedlab.seeding import numpy_generator

_NUM_DOMAINS = 5


def _five_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != _NUM_DOMAINS or len(names) != _NUM_DOMAINS:
        raise ValueError(f"{_NUM_DOMAINS} different names")
    return names


class ShiftedDigitsSettings(Section):
    """Settings of the shifted-digits source."""

    size: int = Field(default=16, ge=8, le=64, description="height and width in pixels")
    train_per_class: Positive = Field(default=26, description="training images of each class and domain")
    test_size: Positive = Field(
        default=497, description="number of images at the end of the file on which every domain is tested"
    )
    domains: Annotated[tuple[str, ...], AfterValidator(_five_distinct)] = Field(
        default=("grey", "tinted", "blended", "blurred", "neighbours"), description="names of the five domains"
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed by which the images are drawn; independent of the run's seed"
    )


class ShiftedDigits(MadeSource[ShiftedDigitsSettings]):
    """scikit-learn's 1,797 digits in five generated domains, 16×16 RGB: FedLGD's acceptance data (offline).

    The training pool (all images but the last `test_size`) is divided among the domains without overlap, evenly over
    the classes. The file's 1,300 training images have only 128 to 132 images of each class. So with the default sizes
    four domains get exactly 26 images of each class and the last domain 24 to 28, which are 260 images per domain.
    """

    Settings = ShiftedDigitsSettings

    def load(self, seed: int) -> Dataset:
        settings = self.settings
        images, labels = digits.handwritten()
        per_domain = 10 * settings.train_per_class
        pool = len(labels) - settings.test_size
        if _NUM_DOMAINS * per_domain > pool:
            raise DataError(
                "data.source.train_per_class",
                settings.train_per_class,
                f"at most {max(pool, 0) // (10 * _NUM_DOMAINS)} with test_size: {settings.test_size}",
                f"{_NUM_DOMAINS} domains share the {len(labels)} images that scikit-learn brings",
            )
        images = to_channels(resize(images, settings.size), 3)
        shares = digits.deal(labels[:pool], [per_domain] * _NUM_DOMAINS, numpy_generator(settings.data_seed, "deal"))
        test = np.arange(pool, len(labels))
        return Dataset(
            "shifted_digits",
            self._samples("train", images, labels, shares),
            self._samples("test", images, labels, [test] * _NUM_DOMAINS),
        )

    def _samples(self, split: str, images: np.ndarray, labels: np.ndarray, shares: list[np.ndarray]) -> Samples:
        shifted = [
            shift(images[share], domain, numpy_generator(self.settings.data_seed, "shift", split, domain))
            for domain, share in enumerate(shares)
        ]
        columns = {
            "image": np.concatenate(shifted),
            "label": np.concatenate([labels[share] for share in shares]),
            "domain": np.repeat(np.arange(_NUM_DOMAINS), [len(share) for share in shares]),
        }
        return Samples(columns, tuple("0123456789"), self.settings.domains)


def shift(images: np.ndarray, domain: int, rng: np.random.Generator) -> np.ndarray:
    """Digits (n, 3, size, size) in [0, 1], white on black, as they look in one of the five domains.

    Args:
        images: float32.
        domain: 0 as they are; 1 inverted and tinted; 2 blended with a smooth color field; 3 blurred, grayed and
            noisy; 4 in two random colors with slices of neighboring digits at both borders.
        rng: draws colors, noise and neighbors.
    """
    n, _, _, size = images.shape
    if domain == 0:
        return images
    if domain == 1:
        return 1 - images * np.array([0.9, 0.6, 0.3], dtype=np.float32)[:, None, None]
    if domain == 2:
        shifted: np.ndarray = np.abs(digits.smooth_colors(n, size, rng) - images)
        return shifted
    if domain == 3:
        from scipy import ndimage

        blurred = ndimage.uniform_filter(images, size=(1, 1, 5, 5), mode="constant")
        noise = rng.standard_normal(images.shape, dtype=np.float32)
        result: np.ndarray = np.clip(blurred * 0.5 + 0.3 + 0.1 * noise, 0, 1).astype(np.float32)
        return result
    width = size // 4
    figures = images.copy()
    figures[..., :width] = np.maximum(figures[..., :width], images[rng.permutation(n)][..., -width:])
    figures[..., -width:] = np.maximum(figures[..., -width:], images[rng.permutation(n)][..., :width])
    ground, ink = rng.random((2, n, 3, 1, 1), dtype=np.float32)
    colored: np.ndarray = ground + (ink - ground) * figures
    return colored
