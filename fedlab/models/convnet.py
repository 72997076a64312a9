"""The ConvNet of the dataset-distillation literature."""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor, nn

from fedlab.config import Positive, Section
from fedlab.models.base import Norm, groups_fit, image_shape, norm_layer


class ConvNet(nn.Module):
    """`depth` × (3×3 convolution, normalisation, ReLU, 2×2 average pooling), then a linear head.

    Zhao, Mopuri and Bilen 2021, arXiv 2006.05929; the first convolution pads by 3 instead of 1 for images of one
    channel, as in their code.

    Args:
        settings: width, depth, normalisation.
        input_shape: (C, H, W).
        num_classes: K.

    Raises:
        ConfigError: images too small for the depth.
    """

    class Settings(Section):
        """Settings of ConvNet."""

        width: Positive = Field(default=128, description="channels of every convolution")
        depth: Positive = Field(default=3, description="blocks, each halving height and width")
        norm: Norm = Field(default="instance", description="instance | batch | group (four groups) | none")

        @model_validator(mode="after")
        def _groups(self) -> ConvNet.Settings:
            if not groups_fit(self.norm, self.width):
                raise ValueError("a width divisible by four with norm = group")
            return self

    def __init__(self, settings: Settings, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        width, depth = settings.width, settings.depth
        extra = 4 if input_shape[0] == 1 else 0
        channels, height, breadth = image_shape(
            "convnet", input_shape, num_classes, max(1, 2**depth - extra), f"choose model.depth below {depth}"
        )
        blocks: list[nn.Module] = []
        for level in range(depth):
            padding = 3 if level == 0 and extra else 1
            blocks += [
                nn.Conv2d(channels if level == 0 else width, width, 3, padding=padding),
                norm_layer(settings.norm, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        self.body = nn.Sequential(*blocks)
        self.feature_dim = width * ((height + extra) >> depth) * ((breadth + extra) >> depth)
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(x)
        return maps.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
