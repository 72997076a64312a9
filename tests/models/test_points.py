"""Encoders of point clouds: what they do not depend on, and how large they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.models.points import DGCNN, PointNet, PointViT, edge_features, nearest


def cloud(n: int = 2, points: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, points, 3, generator=torch.Generator().manual_seed(seed))


def used(network: nn.Module) -> nn.Module:
    """A network whose BatchNorms have seen something, in evaluation mode."""
    network.train()(cloud(8, seed=9))
    return network.eval()


@pytest.mark.parametrize("make", [lambda: PointNet(24), lambda: DGCNN(24), lambda: PointViT(24, 2, 3)])
def test_clouds_of_any_size_become_one_vector(make: object) -> None:
    network = used(make())  # type: ignore[operator]
    for points in (64, 96):
        features = network(cloud(3, points))
        assert features.shape == (3, 24)
        assert bool(torch.isfinite(features).all())


@torch.no_grad()
@pytest.mark.parametrize("network", [PointNet(16), DGCNN(16, 8)], ids=["pointnet", "dgcnn"])
def test_the_order_of_points_does_not_matter(network: nn.Module) -> None:
    shape = cloud()
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    used(network)
    assert torch.allclose(network(shape[:, order]), network(shape), atol=1e-5)


@torch.no_grad()
def test_the_transformer_starts_at_the_first_point_and_needs_no_other_order() -> None:
    network, shape = used(PointViT(16, 2, 2)), cloud()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(95)])
    assert torch.allclose(network(shape[:, order]), network(shape), atol=1e-5)
    assert not torch.allclose(network(shape.flip(1)), network(shape), atol=1e-5)


def test_edges_to_a_single_neighbor_are_those_to_the_point_itself() -> None:
    x = cloud(2, 10)
    edges = edge_features(x, 1)
    assert edges.shape == (2, 6, 10, 1)
    assert bool((edges[:, :3] == 0).all())
    assert torch.equal(edges[:, 3:, :, 0].transpose(1, 2), x)


def test_edges_are_differences_to_the_nearest_points() -> None:
    x = torch.tensor([[[0.0], [1.0], [5.0], [7.0]]])
    edges = edge_features(x, 2)[0]
    assert edges[0].tolist() == [[0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, -2.0]]
    assert edges[1].tolist() == [[0.0, 0.0], [1.0, 1.0], [5.0, 5.0], [7.0, 7.0]]


def test_a_point_is_its_own_neighbor_even_among_points_that_coincide() -> None:
    x = torch.zeros(1, 30, 3)
    assert nearest(x, 4)[0, :, 0].tolist() == list(range(30))


def test_there_is_one_token_for_each_group_and_one_for_the_class() -> None:
    network = PointViT(16, 1, 2)
    assert network.tokens(cloud(2, 96)).shape == (2, 1 + 3, 16)
    assert network.tokens(cloud(2, 100)).shape == (2, 1 + 4, 16)


def test_a_cloud_that_is_moved_has_other_features() -> None:
    """There are no positions in the tokens: the features of the points carry them."""
    network = used(PointViT(16, 2, 2))
    assert not torch.allclose(network(cloud() + 1), network(cloud()), atol=1e-3)


def test_batch_normalization_is_over_all_points_of_all_clouds() -> None:
    network = PointNet(8, (4,))
    seen: list[torch.Tensor] = []
    network.layers[1].register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    network(cloud(4, 50))
    assert seen[0].shape == (200, 4)
    assert torch.allclose(seen[0].mean(0), torch.zeros(4), atol=1e-5)


def counted(make: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())  # type: ignore[operator]


def test_the_published_sizes() -> None:
    # 3·64 + 64·64 + 64·64 + 64·128 + 128·192 weights, and scale and shift of every channel
    assert counted(lambda: PointNet(192)) == 192 + 4096 + 4096 + 8192 + 24576 + 2 * (64 + 64 + 64 + 128 + 192)
    edges = 6 * 64 + 128 * 64 + 128 * 128 + 256 * 256 + 2 * (64 + 64 + 128 + 256)
    assert counted(lambda: DGCNN(192)) == edges + 512 * 1024 + 2 * 1024 + 2048 * 192 + 2 * 192
    points = 3 * 64 + 64 + 64 * 64 + 64 + 4 * 64
    block = 192 * 576 + 576 + 192 * 192 + 192 + 2 * (192 * 384) + 384 + 192 + 4 * 192
    groups = 128 * 192 + 192 + 192 * 192 + 192 + 4 * 192
    assert counted(lambda: PointViT(192)) == points + groups + 192 + 4 * block + 2 * 192
