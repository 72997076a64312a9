"""DCGLR's networks: an encoder of shapes with a projection head, twice, and the center of the teacher's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlab.distill.heads import Projected, ProjectionHead
from fedlab.methods.dcglr.settings import DCGLRSettings
from fedlab.models.points import DGCNN, PointNet, PointViT


class Encoder(nn.Module):
    """A backbone and its projection head (§3.2); student and teacher are one each.

    Args:
        settings: the method's.
        tracked: whether running statistics of BatchNorm follow in training. Those of a teacher that only the server
            changes must not; it still normalizes by the batch.
    """

    def __init__(self, settings: DCGLRSettings, tracked: bool = True) -> None:
        super().__init__()
        s = settings
        self.backbone = make_backbone(s)
        for layer in self.backbone.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.track_running_stats = tracked
        self.projection = ProjectionHead(s.width, (s.hidden, s.hidden, s.bottleneck), s.prototypes)

    def forward(self, clouds: Tensor, *, frozen: bool = False) -> Projected:
        """Clouds (n, N, 3) → bottleneck z (n, d) and logits (n, K); `frozen` prototypes get no gradient."""
        projected: Projected = self.projection(self.backbone(clouds), frozen=frozen)
        return projected

    def of_views(self, kinds: Sequence[Tensor], *, frozen: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """z and logits of every view, (B, d) and (B, K) each.

        Views of one size run through the network together, so that BatchNorm sees no padding and no mixture of sizes.

        Args:
            kinds: views of one size each, (V, B, M, 3).
            frozen: see `forward`.
        """
        z: list[Tensor] = []
        logits: list[Tensor] = []
        for kind in kinds:
            projected = self(kind.flatten(0, 1), frozen=frozen)
            z += projected.bottleneck.chunk(len(kind))
            logits += projected.logits.chunk(len(kind))
        return z, logits


def make_backbone(s: DCGLRSettings) -> nn.Module:
    """The backbone of the settings: clouds (n, N, 3) → features (n, D)."""
    if s.backbone == "dgcnn":
        return DGCNN(s.width, s.neighbors)
    return PointNet(s.width, s.pointnet_widths) if s.backbone == "pointnet" else PointViT(s.width, s.depth, s.heads)


def estimate_statistics(network: nn.Module, clouds: Tensor) -> None:
    """Set the running statistics of BatchNorm to those of these clouds (n, N, 3), which pass through as one batch."""
    network.train()
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(layer.momentum, layer.track_running_stats) for layer in layers]
    for layer in layers:
        layer.momentum, layer.track_running_stats = 1.0, True
    with torch.no_grad():
        network(clouds)
    for layer, (momentum, tracked) in zip(layers, before, strict=True):
        layer.momentum, layer.track_running_stats = momentum, tracked
    network.eval()
