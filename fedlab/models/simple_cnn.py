"""The small CNN of federated-learning benchmarks."""

from __future__ import annotations

from torch import Tensor, nn

from fedlab.config import Section
from fedlab.models.base import image_shape


class SimpleCNN(nn.Module):
    """Two unpadded 3×3 convolutions, max-pooling, one hidden layer of 128 units, dropout before each linear layer.

    Reddi et al. 2021, arXiv 2003.00295, Table 4 (its EMNIST network, 1,199,882 parameters for 1×28×28 and ten classes).

    Args:
        settings: none.
        input_shape: (C, H, W).
        num_classes: K.

    Raises:
        ConfigError: images below 6×6.
    """

    class Settings(Section):
        """No settings."""

    def __init__(self, settings: Settings, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape("simple_cnn", input_shape, num_classes, 6, "choose larger images")
        self.feature_dim = 128
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), self.feature_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.body(x)
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
