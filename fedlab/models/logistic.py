"""Multinomial logistic regression."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fedlab.config import Section
from fedlab.errors import ConfigError


class Logistic(nn.Module):
    """One linear layer on the flattened sample.

    Args:
        settings: none.
        input_shape: shape of one sample.
        num_classes: K.

    Raises:
        ConfigError: no classes.
    """

    class Settings(Section):
        """No settings."""

    def __init__(self, settings: Settings, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("model.name", "logistic", "data with labels: this model classifies")
        self.feature_dim = math.prod(input_shape)
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
