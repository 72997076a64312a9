"""VHL's network: any encoder with a classifier of real and virtual classes."""

from __future__ import annotations

from torch import Tensor, nn

from fedlab.models import feature_classifier


class ExtendedClassifier(nn.Module):
    """Real classes first, then virtual ones; only the real ones are predicted.

    Args:
        encoder: a network without head, (n, C, H, W) → (n, d).
        feature_dim: d.
        num_classes: K.
        virtual_classes: M.
    """

    def __init__(self, encoder: nn.Module, feature_dim: int, num_classes: int, virtual_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.feature_dim, self.num_classes = feature_dim, num_classes
        self.head = nn.Linear(feature_dim, num_classes + virtual_classes)

    def features(self, x: Tensor) -> Tensor:
        """(n, d), what the head receives."""
        z: Tensor = feature_classifier(self.encoder).features(x)
        return z

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of the real classes."""
        logits: Tensor = self.head(self.features(x))
        return logits[:, : self.num_classes]
