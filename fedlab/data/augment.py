"""Augmentations: random changes of the images in training batches, drawn for each image and each step.

They are applied to pixels in [0, 1], before the images are normalized, so that black is 0 and the operations on colors
mean what they do elsewhere. Test, validation and server samples are never augmented. All random numbers come from one
generator of the client, the round and the step, so that every engine draws the same, and a resumed run too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedlab.config import Component, DataConfig, Fraction, Positive, Section, UnfitValue
from fedlab.distill.erasing import padded_crop, random_flip, random_rectangles
from fedlab.distill.photometric import color_jitter, random_blur, random_grayscale, random_solarize
from fedlab.distill.views import draw_views, take_views
from fedlab.errors import ConfigError
from fedlab.method import Batch, Method
from fedlab.registry import Registry

KEY = "data.augment"
AUGMENTATIONS = Registry(
    "augmentation",
    {
        "blur": "fedlab.data.augment:Blur",
        "color": "fedlab.data.augment:Color",
        "crop": "fedlab.data.augment:Crop",
        "erase": "fedlab.data.augment:Erase",
        "flip": "fedlab.data.augment:Flip",
        "gray": "fedlab.data.augment:Gray",
        "resized_crop": "fedlab.data.augment:ResizedCrop",
        "solarize": "fedlab.data.augment:Solarize",
    },
    "fedlab.augmentations",
)

_Share = Annotated[float, Field(ge=0, le=1)]


class Augmentation(ABC):
    """Base of all augmentations.

    Args:
        settings: an object of the class's `Settings`.
    """

    class Settings(Section):
        """An augmentation without settings."""

    channels: ClassVar[tuple[int, ...]] = ()
    """The numbers of channels that images may have; empty if any will do."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies of the images.

        Args:
            images: (n, C, H, W) in [0, 1], n > 0, on any device.
            generator: of the CPU; the only source of random numbers.

        Returns:
            (n, C, H, W) in [0, 1].
        """


class Crop(Augmentation):
    """Images with a border of one value, cropped to their old size at a random place."""

    class Settings(Section):
        """Settings of cropping."""

        padding: Positive = Field(default=4, description="width of the border in pixels, on each side")
        fill: _Share = Field(default=0.0, description="value of the border; 0 is black and 1 is white")

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return padded_crop(images, self.settings.padding, generator, fill=self.settings.fill)


class ResizedCrop(Augmentation):
    """Random parts of the images, with sides of 3:4 to 4:3, resized to the whole size."""

    class Settings(Section):
        """Settings of resized crops."""

        smallest: Fraction = Field(default=0.08, description="smallest share of the area; the largest is 1")

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        views = draw_views(len(images), (height, width), generator, scale=(self.settings.smallest, 1.0), flip=False)
        return take_views(images, views).clamp(0, 1)


class Flip(Augmentation):
    """Images that are mirrored left and right with a probability."""

    class Settings(Section):
        """Settings of flips."""

        probability: _Share = Field(default=0.5, description="share of the images that are mirrored")

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return random_flip(images, generator, probability=self.settings.probability)


class Color(Augmentation):
    """Random changes of brightness, contrast, saturation and hue, in a random order for each image."""

    class Settings(Section):
        """Settings of color changes; a strength s of the first three draws a factor from 1 − s to 1 + s."""

        brightness: float = Field(default=0.4, ge=0, description="strength of the change of brightness")
        contrast: float = Field(default=0.4, ge=0, description="strength of the change of contrast")
        saturation: float = Field(default=0.2, ge=0, description="strength of the change of saturation")
        hue: float = Field(default=0.1, ge=0, le=0.5, description="largest turn of the hue, as a share of the circle")
        probability: _Share = Field(default=0.8, description="share of the images that are changed")

    channels = (1, 3)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        s = self.settings
        strengths = (s.brightness, s.contrast, s.saturation, s.hue)
        return color_jitter(images, strengths, generator, probability=s.probability)


class Gray(Augmentation):
    """Images that lose their colors with a probability."""

    class Settings(Section):
        """Settings of graying."""

        probability: _Share = Field(default=0.2, description="share of the images that become gray")

    channels = (1, 3)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return random_grayscale(images, generator, probability=self.settings.probability)


class Blur(Augmentation):
    """Images that are blurred by a Gaussian with a probability."""

    class Settings(Section):
        """Settings of blurring."""

        smallest: float = Field(default=0.1, gt=0, description="smallest standard deviation, in pixels")
        largest: float = Field(default=2.0, gt=0, description="largest standard deviation, in pixels")
        probability: _Share = Field(default=0.5, description="share of the images that are blurred")

        @model_validator(mode="after")
        def _ordered(self) -> Blur.Settings:
            if self.smallest > self.largest:
                raise UnfitValue("smallest", self.smallest, f"at most largest = {self.largest:g}")
            return self

    channels = (1, 3)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        s = self.settings
        return random_blur(images, (s.smallest, s.largest), generator, probability=s.probability)


class Solarize(Augmentation):
    """Images whose bright pixels are inverted with a probability."""

    class Settings(Section):
        """Settings of solarization."""

        threshold: _Share = Field(default=0.5, description="least value that is inverted")
        probability: _Share = Field(default=0.2, description="share of the images that are changed")

    channels = (1, 3)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        s = self.settings
        return random_solarize(images, generator, probability=s.probability, threshold=s.threshold)


class Erase(Augmentation):
    """Images of which a random rectangle of 2 % to 40 % of the area is covered with a probability."""

    class Settings(Section):
        """Settings of erasing."""

        probability: _Share = Field(default=0.5, description="share of the images that get a rectangle")
        fill: _Share = Field(default=0.0, description="value of the rectangle; 0 is black and 1 is white")

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        covered = random_rectangles(images, self.settings.probability, generator)
        return images.masked_fill(covered, self.settings.fill)


@dataclass(frozen=True)
class Augment:
    """Augmentations that are applied to training batches one after the other. It can be pickled.

    Args:
        steps: the augmentations.
        names: their names in the configuration.
        mean: what is subtracted from each channel of images in [0, 1]; one number, or one for each channel.
        std: what each channel is divided by after that.
    """

    steps: tuple[Augmentation, ...] = ()
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with changed copies of its normalized images; a batch without images stays as it is."""
        images = batch.get("image")
        if images is None or not len(images):
            return batch
        mean, std = (images.new_tensor(values).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        pixels = (images * std + mean).clamp(0, 1)
        for step in self.steps:
            pixels = step.apply(pixels, generator)
        return {**batch, "image": (pixels - mean) / std}

    def check(self, columns: Mapping[str, tuple[str, Sequence[int]]]) -> None:
        """Refuse samples that cannot be augmented.

        Args:
            columns: dtype and shape of one sample of each column.

        Raises:
            ConfigError: they are no images, or have a number of channels that an augmentation does not work with.
        """
        if not self.steps:
            return
        _, shape = columns.get("image", ("", ()))
        if len(shape) != 3:
            raise ConfigError(
                KEY,
                list(self.names),
                "samples that are images (a column image of shape channels x height x width); these have "
                + (", ".join(sorted(columns)) or "no columns"),
                f"remove {KEY}, or choose an image source",
            )
        for place, (name, step) in enumerate(zip(self.names, self.steps, strict=True)):
            if step.channels and shape[0] not in step.channels:
                allowed = " or ".join(map(str, step.channels))
                raise ConfigError(
                    f"{KEY}.{place}.name", name, f"images of {allowed} channels; these have {shape[0]}", "remove it"
                )


def make_augment(data: DataConfig, method: Method | None = None) -> Augment:
    """The augmentations that a configuration asks for, with their settings validated.

    Args:
        data: the section ``data``.
        method: the method that is to train on them; None if it is not known.

    Raises:
        ConfigError, ConfigErrors: an augmentation or a setting is unknown, the method does not train on augmented
            images, or domains are normalized differently.
    """
    if not data.augment:
        return Augment()
    names = [component.name for component in data.augment]
    if method is not None and not method.augments:
        raise ConfigError(
            KEY,
            names,
            f"a method that trains on augmented images; {method.title or type(method).__name__} does not",
            f"remove {KEY}; a method of your own asks for it by the class attribute augments = True",
        )
    mean, std = data.mean, data.std
    if isinstance(mean, dict) or isinstance(std, dict):
        raise ConfigError(
            KEY,
            names,
            "one data.mean and one data.std for all domains, because augmentations change pixels before normalization",
            "set one list for each, or remove it",
        )
    steps = tuple(_made(component, f"{KEY}.{place}") for place, component in enumerate(data.augment))
    return Augment(steps, tuple(names), mean, std)


def _made(component: Component, key: str) -> Augmentation:
    found, settings = AUGMENTATIONS.configured(component, key)
    if not issubclass(found, Augmentation):
        raise ConfigError(f"{key}.name", component.name, "a subclass of fedlab.data.augment.Augmentation")
    made: Augmentation = found(settings)
    return made
