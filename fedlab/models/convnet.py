"""The ConvNet of the dataset-distillation literature."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from fedlab.config import Positive, Section, UnfitValue
from fedlab.models.base import Norm, groups_fit, image_shape, norm_layer


class ConvNet(nn.Module):
    """`depth` × (3×3 convolution, normalization, ReLU, 2×2 pooling), then a linear head.

    Zhao, Mopuri and Bilen 2021, arXiv 2006.05929; the first convolution pads by 3 instead of 1 for images of one
    channel, as in their code, unless `same_padding`.

    Args:
        settings: width, depth, normalization, pooling.
        input_shape: (C, H, W).
        num_classes: K.

    Raises:
        ConfigError: images too small for the depth.
    """

    class Settings(Section):
        """Settings of ConvNet."""

        width: Positive | tuple[Positive, ...] = Field(
            default=128, description="number of channels of every convolution, or a list with one number for each"
        )
        depth: Positive = Field(default=3, description="number of blocks; each halves height and width")
        norm: Norm = Field(
            default="instance", description="normalization: instance, batch, group (four groups) or none"
        )
        pooling: Literal["average", "max"] = "average"
        same_padding: bool = Field(
            default=False, description="pad images of one channel by 1 like all others, and not by 3"
        )

        @property
        def widths(self) -> tuple[int, ...]:
            """One per block."""
            return self.width if isinstance(self.width, tuple) else (self.width,) * self.depth

        @model_validator(mode="after")
        def _fits(self) -> ConvNet.Settings:
            if len(self.widths) != self.depth:
                raise UnfitValue("width", self.width, f"as many widths as blocks: depth is {self.depth}")
            if not all(groups_fit(self.norm, width) for width in self.widths):
                raise UnfitValue("width", self.width, "a width divisible by four with norm = group")
            return self

    def __init__(self, settings: Settings, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        depth, widths = settings.depth, settings.widths
        extra = 4 if input_shape[0] == 1 and not settings.same_padding else 0
        channels, height, breadth = image_shape(
            "convnet", input_shape, num_classes, max(1, 2**depth - extra), f"choose model.depth below {depth}"
        )
        blocks: list[nn.Module] = []
        for level, (inside, outside) in enumerate(itertools.pairwise((channels, *widths))):
            blocks += [
                nn.Conv2d(inside, outside, 3, padding=3 if level == 0 and extra else 1),
                norm_layer(settings.norm, outside),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2) if settings.pooling == "average" else nn.MaxPool2d(2),
            ]
        self.body = nn.Sequential(*blocks)
        self.feature_dim = widths[-1] * ((height + extra) >> depth) * ((breadth + extra) >> depth)
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(x)
        return maps.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
