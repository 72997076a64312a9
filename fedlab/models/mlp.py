"""A multilayer perceptron, for feature vectors and for small images."""

from __future__ import annotations

import itertools
import math

from pydantic import Field
from torch import Tensor, nn

from fedlab.config import Positive, ProperFraction, Section
from fedlab.errors import ConfigError


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the flattened sample.

    With ``hidden: [200, 200]`` it is the network "2NN" of McMahan et al. 2017, arXiv 1602.05629, section 3 (199,210
    parameters for 1×28×28 and ten classes).

    Args:
        settings: widths and dropout.
        input_shape: shape of one sample.
        num_classes: K.

    Raises:
        ConfigError: no classes.
    """

    class Settings(Section):
        """Settings of MLP."""

        hidden: tuple[Positive, ...] = Field(
            default=(200, 200), min_length=1, description="number of units of each hidden layer"
        )
        dropout: ProperFraction | None = Field(
            default=None, description="probability with which a hidden unit is set to 0 in training; default: none"
        )

    def __init__(self, settings: Settings, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("model.name", "mlp", "data with labels: this model classifies")
        layers: list[nn.Module] = []
        for inside, outside in itertools.pairwise((math.prod(input_shape), *settings.hidden)):
            layers += [nn.Linear(inside, outside), nn.ReLU(inplace=True)]
            layers += [nn.Dropout(settings.dropout)] if settings.dropout else []
        self.body = nn.Sequential(*layers)
        self.feature_dim = settings.hidden[-1]
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.body(x.flatten(1))
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
