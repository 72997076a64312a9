"""Encoders of point clouds: PointNet, DGCNN and a vision transformer over groups of points.

All of them map clouds (n, N, 3) to features (n, D), for any N that is large enough.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlab.distill.heads import init_linear
from fedlab.distill.point_views import farthest_points
from fedlab.models.vit import Block

_GROUP = 32


def nearest(points: Tensor, k: int) -> Tensor:
    """Indices (n, N, k) of the k nearest points of each point of clouds (n, N, d), the point itself among them.

    Points that coincide with a point do not displace it: it comes first.
    """
    distance = torch.cdist(points, points)
    distance.diagonal(dim1=1, dim2=2).fill_(-1.0)
    return distance.topk(k, dim=2, largest=False).indices


def edge_features(x: Tensor, k: int) -> Tensor:
    """Features of the edges from each point i to its k nearest points j: ``[x_j − x_i, x_i]``, (n, 2 d, N, k).

    Args:
        x: (n, N, d), features by which neighbors are found and which the edges carry.
        k: number of neighbors, the point itself among them.

    Source: Wang et al. 2019, arXiv 1801.07829, Eq. 8.
    """
    with torch.no_grad():
        which = nearest(x, k)
    around = _gathered(x, which)
    center = x[:, :, None].expand_as(around)
    return torch.cat([around - center, center], dim=3).permute(0, 3, 1, 2)


class PointNet(nn.Module):
    """The same layers for every point, and the maximum over all points. There are no learned transforms.

    Args:
        width: D.
        widths: of the layers before the last.

    Source: Qi et al. 2017, arXiv 1612.00593, without its T-Nets.
    """

    def __init__(self, width: int, widths: Sequence[int] = (64, 64, 64, 128)) -> None:
        super().__init__()
        self.layers = _Pointwise(3, (*widths, width))

    def forward(self, clouds: Tensor) -> Tensor:
        """(n, N, 3) → (n, D)."""
        features: Tensor = self.layers(clouds).max(1).values
        return features


class DGCNN(nn.Module):
    """Four convolutions over the edges to the nearest neighbors, which are found anew in the features of each layer.

    Args:
        width: D.
        neighbors: k; each point counts as one of its own neighbors.

    Source: Wang et al. 2019, arXiv 1801.07829.
    """

    def __init__(self, width: int, neighbors: int = 20) -> None:
        super().__init__()
        self.neighbors = neighbors
        sizes = ((6, 64), (128, 64), (128, 128), (256, 256))
        self.edges = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)) for a, b in sizes
        )
        self.joined = nn.Sequential(nn.Conv1d(512, 1024, 1, bias=False), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2))
        self.project = nn.Linear(2048, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, clouds: Tensor) -> Tensor:
        """(n, N, 3) → (n, D); N is at least the number of neighbors."""
        x, found = clouds, []
        for layer in self.edges:
            x = layer(edge_features(x, self.neighbors)).max(3).values.transpose(1, 2)
            found.append(x)
        x = self.joined(torch.cat(found, dim=2).transpose(1, 2))
        features: Tensor = self.norm(self.project(torch.cat([x.max(2).values, x.mean(2)], dim=1)))
        return features


class PointViT(nn.Module):
    """A transformer over groups of neighboring points, of which each becomes one token.

    The ⌈N / 32⌉ centers of the groups are farthest points. Each group consists of the 32 points nearest to its center.
    There are no positions: the features of a group carry its place. The feature is the class token after the last
    normalization.

    Args:
        width: D.
        depth: number of blocks.
        heads: number of attention heads, a divisor of the width.
    """

    def __init__(self, width: int, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.points = _Pointwise(3, (64, 64), bias=True)
        self.groups = _Pointwise(128, (width, width), bias=True)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, 2, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks.apply(init_linear)

    def forward(self, clouds: Tensor) -> Tensor:
        """(n, N, 3) → (n, D); N is at least 32."""
        x = self.tokens(clouds)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x[:, 0])
        return features

    def tokens(self, clouds: Tensor) -> Tensor:
        """(n, N, 3) → the class token and one token for each group, (n, 1 + ⌈N / 32⌉, D)."""
        features = self.points(clouds)
        with torch.no_grad():
            centers = farthest_points(clouds, math.ceil(clouds.shape[1] / _GROUP))[..., None]
            distance = torch.cdist(_gathered(clouds, centers)[:, :, 0], clouds)
            which = distance.topk(_GROUP, dim=2, largest=False).indices
        around, center = _gathered(features, which), _gathered(features, centers)
        grouped = torch.cat([around - center, center.expand_as(around)], dim=3)
        found = self.groups(grouped).max(2).values
        return torch.cat([self.token.expand(len(found), -1, -1), found], dim=1)


class _Pointwise(nn.Sequential):
    """The same linear layers for every point, each with BatchNorm over all points and ReLU: (…, C) → (…, D)."""

    def __init__(self, width: int, widths: Sequence[int], bias: bool = False) -> None:
        layers: list[nn.Module] = []
        for before, wide in itertools.pairwise((width, *widths)):
            layers += [nn.Linear(before, wide, bias=bias), nn.BatchNorm1d(wide), nn.ReLU(inplace=True)]
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        found = x.flatten(0, -2)
        for layer in self:
            found = layer(found)
        return found.reshape(*x.shape[:-1], -1)


def _gathered(values: Tensor, which: Tensor) -> Tensor:
    """Values (n, N, d) at the indices (n, M, k): (n, M, k, d)."""
    n, m, k = which.shape
    return values.gather(1, which.reshape(n, m * k, 1).expand(-1, -1, values.shape[2])).reshape(n, m, k, -1)
