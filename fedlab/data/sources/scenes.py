"""Generated scenes with masks: shapes whose colors the background shares, under weather of several kinds."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Positive, Section
from fedlab.data.files.images import resize, to_uint8
from fedlab.data.files.masks import dominant_class
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource
from fedlab.seeding import numpy_generator

CLASSES = ("background", "disc", "square", "triangle", "cross")
Condition = Literal["clear", "fog", "night", "rain", "snow"]
_COLORS = np.array([[0.85, 0.3, 0.25], [0.3, 0.7, 0.3], [0.3, 0.4, 0.85], [0.85, 0.75, 0.25]])


def _distinct(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    if not conditions or len(set(conditions)) < len(conditions):
        raise ValueError("at least one condition, each at most once")
    return conditions


class ScenesSettings(Section):
    """Settings of the scenes source."""

    train: Positive = Field(default=64, description="number of training images, which are divided among the clients")
    test: Positive = Field(default=150, description="number of test images, which are divided among the clients")
    teacher: int = Field(default=600, ge=0, description="number of labeled images in the server's sample set 'teacher'")
    server_test: int = Field(default=150, ge=0, description="number of test images in the server's sample set 'test'")
    size: int = Field(default=64, ge=32, le=256, multiple_of=4, description="height and width in pixels")
    stride: Literal[1, 2, 4] = Field(default=4, description="image pixels per mask pixel")
    conditions: Annotated[tuple[Condition, ...], AfterValidator(_distinct)] = Field(
        default=("clear",),
        description="domains among which the images are divided evenly: clear, fog, night, rain, snow",
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed by which the images are drawn; independent of the run's seed"
    )


class SceneSource(MadeSource[ScenesSettings]):
    """Generated images with masks: four shapes on a background of the same colors, in one or more weathers (offline).

    ``label`` is the shape that covers most of an image, so that partitions by label divide shapes.
    """

    Settings = ScenesSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        held = {"teacher": s.teacher, "test": s.server_test}
        return Dataset(
            "scenes",
            self._samples("train", s.train),
            self._samples("test", s.test),
            {name: self._samples(f"server {name}", count) for name, count in held.items() if count},
        )

    def _samples(self, split: str, count: int) -> Samples:
        s = self.settings
        rng = numpy_generator(s.data_seed, "scenes", split)
        images, masks = draw_scenes(count, s.size, rng)
        domain = np.arange(count) % len(s.conditions)
        for index, condition in enumerate(s.conditions):
            weather = numpy_generator(s.data_seed, "weather", split, condition)
            images[domain == index] = under(images[domain == index], condition, weather)
        columns = {
            "image": to_uint8(images),
            "mask": masks[:, s.stride // 2 :: s.stride, s.stride // 2 :: s.stride],
            "label": dominant_class(masks, len(CLASSES), background=0),
            "domain": domain,
        }
        return Samples(columns, CLASSES, s.conditions)


def draw_scenes(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, size, size) float32 in [0, 1] and their masks (n, size, size) int64.

    Two to five shapes, each of a random kind, place, extent and turn, later ones over earlier ones, in the kind's
    color with a shift of its own, on a smooth mixture of all kinds' colors.
    """
    images = _background(count, size, rng)
    masks = np.zeros((count, size, size), np.int64)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    for image, mask in zip(images, masks, strict=True):
        for _ in range(rng.integers(2, 6)):
            kind = int(rng.integers(1, len(CLASSES)))
            y, x = rng.uniform(0.1, 0.9, 2) * size
            radius, turn = rng.uniform(0.1, 0.24) * size, rng.uniform(0, 2 * np.pi)
            across = ((columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)) / radius
            along = ((rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)) / radius
            inside = _inside(kind, across, along)
            color = _COLORS[kind - 1] + rng.normal(0, 0.12, 3)
            image[:, inside] = color[:, None]
            mask[inside] = kind
    images += rng.normal(0, 0.06, images.shape)
    return np.clip(images, 0, 1).astype(np.float32), masks


def _background(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth field of mixtures of the shapes' colors, (n, 3, size, size)."""
    weights = rng.dirichlet(np.full(len(_COLORS), 0.25), (count, 5, 5))
    coarse = np.moveaxis(weights @ _COLORS, -1, 1).astype(np.float32)
    return resize(coarse, size)


def _inside(kind: int, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Where a shape of unit radius around the origin is."""
    a, b = np.abs(across), np.abs(along)
    inside: np.ndarray
    match CLASSES[kind]:
        case "disc":
            inside = across**2 + along**2 < 0.8**2
        case "square":
            inside = np.maximum(a, b) < 0.7
        case "triangle":
            inside = (along > -0.6) & (along < 1.1 - 1.7 * a)
        case _:
            inside = (np.minimum(a, b) < 0.25) & (np.maximum(a, b) < 0.95)
    return inside


def under(images: np.ndarray, condition: Condition, rng: np.random.Generator) -> np.ndarray:
    """Images (n, 3, H, W) float32 in [0, 1] as they look in a kind of weather."""
    n, _, height, width = images.shape
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    if condition == "fog":
        depth = np.linspace(0.75, 0.35, height, dtype=np.float32)[:, None]  # thickest at the top, farthest away
        images = images * (1 - depth) + 0.8 * depth
    elif condition == "night":
        images = 0.35 * images * np.array([0.8, 0.85, 1.1], np.float32)[:, None, None] + 0.04 * noise
    elif condition == "rain":
        streaks = rng.random((n, 1, height + width, width), dtype=np.float32) < 0.02
        falling = np.any([np.roll(streaks, shift, axis=2) for shift in range(6)], axis=0)[:, :, :height]
        images = np.where(falling, 0.5 * images + 0.4, 0.75 * images + 0.08)
    elif condition == "snow":
        flakes = rng.random((n, 1, height, width), dtype=np.float32) < 0.06
        images = np.where(flakes, 0.95, 0.7 * images + 0.25 + 0.02 * noise)
    seen: np.ndarray = np.clip(images, 0, 1).astype(np.float32)
    return seen
