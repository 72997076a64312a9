"""The ResNets of torchvision, built from transformers' classes, whose checkpoints they load."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from fedlab.config import Positive, Section
from fedlab.errors import ConfigError
from fedlab.models.base import image_shape

_LAYERS: dict[int, tuple[str, list[int]]] = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}


class ResNet(nn.Module):
    """ResNet-18 to -152 with BatchNorm and global average pooling; loads published checkpoints.

    He et al. 2016, arXiv 1512.03385, strides in the 3×3 convolutions as in torchvision; ResNet-18 for 1000 classes has
    11,689,512 parameters. The ``small`` stem (3×3, stride 1, no max-pooling) is for images of 32 to 64 pixels.

    Args:
        settings: depth, width, stem.
        input_shape: (C, H, W).
        num_classes: K.

    Raises:
        ConfigError: images below 8×8.
    """

    class Settings(Section):
        """Settings of ResNet."""

        depth: Literal[18, 34, 50, 101, 152] = 18
        width: Positive = Field(
            default=64, description="number of channels of the first stage; the paper's networks have 64"
        )
        stem: Literal["imagenet", "small"] = Field(
            default="imagenet",
            description="first layers: imagenet: as in the paper; small: 3×3 convolution of stride 1 without "
            "max-pooling",
        )

    def __init__(self, settings: Settings, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        channels, _, _ = image_shape("resnet", input_shape, num_classes, 8, "choose larger images")
        layer, depths = _LAYERS[settings.depth]
        widest = settings.width * (1 if layer == "basic" else 4)
        network: Any = ResNetForImageClassification(
            ResNetConfig(
                num_channels=channels,
                embedding_size=settings.width,
                hidden_sizes=[widest * 2**stage for stage in range(4)],
                depths=depths,
                layer_type=layer,
                num_labels=num_classes,
            )
        )
        if settings.stem == "small":
            stem = network.resnet.embedder
            stem.embedder.convolution = nn.Conv2d(channels, settings.width, 3, padding=1, bias=False)
            stem.pooler = nn.Identity()
        self.body: Any = network.resnet
        self.feature_dim = widest * 8
        self.head: nn.Module = network.classifier[1]

    def features(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.body(x).pooler_output
        return pooled.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    def load_pretrained(self, name: str, key: str = "model.pretrained") -> None:
        """Take over weights that transformers' `from_pretrained` finds.

        Args:
            name: a hub name such as ``microsoft/resnet-18``, or a folder written by `save_pretrained`.
            key: the setting that named it, for the message.

        Raises:
            ConfigError: not there, or weights of another network.
        """
        from transformers import ResNetForImageClassification

        try:
            source: Any = ResNetForImageClassification.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(key, name, "a ResNet on the hub, in its cache, or in a folder", reason) from error
        try:
            self.body.load_state_dict(source.resnet.state_dict())
            self.head.load_state_dict(source.classifier[1].state_dict())
        except RuntimeError as error:
            found = f"depths {source.config.depths}, {source.config.num_labels} classes"
            raise ConfigError(key, name, "weights of the configured model and classes", f"it has {found}") from error
