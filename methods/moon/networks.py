"""MOON's network: encoder, projection, classifier on the projection."""

from __future__ import annotations

from torch import Tensor, nn

from fedlab.models import feature_classifier


class ProjectionNetwork(nn.Module):
    """x → h = encoder(x) → z = W₂·ReLU(W₁·h) → logits, all communicated (the authors' `ModelFedCon`).

    Args:
        encoder: a network without head, (n, C, H, W) → (n, d).
        encoder_dim: d.
        projection_dim: width of z.
        num_classes: K.
    """

    def __init__(self, encoder: nn.Module, encoder_dim: int, projection_dim: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Sequential(
            nn.Linear(encoder_dim, encoder_dim), nn.ReLU(inplace=True), nn.Linear(encoder_dim, projection_dim)
        )
        self.feature_dim = projection_dim
        self.head = nn.Linear(projection_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """z, what the loss compares and the head receives."""
        h: Tensor = feature_classifier(self.encoder).features(x)
        z: Tensor = self.projection(h)
        return z

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
