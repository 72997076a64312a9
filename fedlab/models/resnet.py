"""ResNet-18 for small images."""

from __future__ import annotations

import itertools

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import Section
from fedlab.models.base import Norm, image_shape, norm_layer


class ResNet18(nn.Module):
    """ResNet-18 with the CIFAR stem (3×3 convolution of stride 1, no max-pooling) and 4×4 average pooling.

    He et al. 2016, arXiv 1512.03385, in the form of the dataset-distillation literature: normalization is group
    normalization with one channel per group unless set otherwise, and where more than one pooled cell is left (images
    of 64 pixels and more) the head has a hidden layer of 512 units.

    Args:
        settings: normalization.
        input_shape: (C, H, W).
        num_classes: K.

    Raises:
        ConfigError: images below 25×25.
    """

    class Settings(Section):
        """Settings of ResNet18."""

        norm: Norm = Field(
            default="instance", description="normalization: instance, batch, group (four groups) or none"
        )

    def __init__(self, settings: Settings, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape(
            "resnet18", input_shape, num_classes, 25, "choose larger images or model.name=convnet"
        )
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1, bias=False), norm_layer(settings.norm, 64), nn.ReLU(inplace=True)
        )
        widths = (64, 64, 128, 256, 512)
        blocks: list[nn.Module] = []
        for level, (inside, outside) in enumerate(itertools.pairwise(widths)):
            blocks += [
                BasicBlock(inside, outside, 1 if level == 0 else 2, settings.norm),
                BasicBlock(outside, outside, 1, settings.norm),
            ]
        self.body = nn.Sequential(*blocks)
        cells = [-(-side // 8) // 4 for side in (height, width)]  # three strides of 2 round up, pooling rounds down
        self.feature_dim = 512 * cells[0] * cells[1]
        self.head: nn.Module = nn.Linear(self.feature_dim, num_classes)
        if self.feature_dim > 512:
            self.head = nn.Sequential(
                nn.Linear(self.feature_dim, 512), nn.ReLU(inplace=True), nn.Linear(512, num_classes)
            )

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(self.stem(x))
        return F.avg_pool2d(maps, 4).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut.

    Args:
        inside: channels in.
        outside: channels out.
        stride: of the first convolution.
        norm: normalization.
    """

    def __init__(self, inside: int, outside: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
            norm_layer(norm, outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            norm_layer(norm, outside),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), norm_layer(norm, outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))
