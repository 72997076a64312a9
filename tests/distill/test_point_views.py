"""Views of point clouds, on clouds whose parts can be told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedlab.distill import point_views as pv


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def clouds(n: int, points: int, seed: int = 0) -> Tensor:
    return torch.randn(n, points, 3, generator=torch.Generator().manual_seed(seed))


def rows(cloud: Tensor) -> set[tuple[float, ...]]:
    return {tuple(point) for point in cloud.tolist()}


def test_jitter_has_its_deviation_and_its_limit(generator: torch.Generator) -> None:
    moved = pv.jitter(torch.zeros(8, 4000, 3), generator)
    assert float(moved.std()) == pytest.approx(0.01, rel=0.02)
    assert float(pv.jitter(torch.zeros(8, 4000, 3), generator, 0.05, 0.05).abs().max()) == pytest.approx(0.05)


def test_scale_is_one_factor_for_each_axis_of_each_cloud(generator: torch.Generator) -> None:
    factors = pv.scale(torch.ones(4000, 5, 3), generator)
    assert torch.equal(factors, factors[:, :1].expand(-1, 5, -1))
    assert 2 / 3 <= float(factors.min()) < 0.68
    assert 1.48 < float(factors.max()) <= 1.5
    assert float(factors.mean()) == pytest.approx((2 / 3 + 3 / 2) / 2, abs=0.01)
    assert len(set(factors[0, 0].tolist())) == 3


def test_shift_is_one_distance_for_each_axis_of_each_cloud(generator: torch.Generator) -> None:
    moved = pv.shift(torch.zeros(4000, 5, 3), generator)
    assert torch.equal(moved, moved[:, :1].expand(-1, 5, -1))
    assert -0.2 <= float(moved.min()) < -0.19
    assert 0.19 < float(moved.max()) <= 0.2


def test_rotations_keep_distances_and_reach_every_direction_alike(generator: torch.Generator) -> None:
    whole = clouds(2000, 6)
    turned = pv.rotate(whole, generator)
    assert torch.allclose(torch.cdist(turned, turned), torch.cdist(whole, whole), atol=1e-4)
    volume = torch.linalg.det(turned[:, :3]) / torch.linalg.det(whole[:, :3])
    assert torch.allclose(volume, torch.ones(2000), atol=1e-2), "a reflection is no rotation"
    up = pv.rotate(torch.tensor([0.0, 0.0, 1.0]).expand(4000, 1, 3), generator)[:, 0]
    assert torch.allclose(up.mean(0), torch.zeros(3), atol=0.03)
    assert torch.allclose(up.square().mean(0), torch.full((3,), 1 / 3), atol=0.02)


def test_rotation_about_the_third_axis_leaves_it_as_it_is(generator: torch.Generator) -> None:
    whole = clouds(500, 6)
    turned = pv.rotate_up(whole, generator)
    assert torch.equal(turned[..., 2], whole[..., 2])
    assert torch.allclose(torch.cdist(turned, turned), torch.cdist(whole, whole), atol=1e-4)
    angle = torch.atan2(turned[:, 0, 1], turned[:, 0, 0]) - torch.atan2(whole[:, 0, 1], whole[:, 0, 0])
    assert float((angle % (2 * math.pi)).mean()) == pytest.approx(math.pi, abs=0.3)


def test_a_ball_crop_keeps_the_share_of_points_nearest_to_one_of_them(generator: torch.Generator) -> None:
    whole = clouds(1, 1000)
    kept, count = pv.ball_crop(whole, 0.3, 0.3, generator)
    assert count.tolist() == [300]
    center = kept[0, 0]
    inside = rows(kept[0])
    assert tuple(center.tolist()) in rows(whole[0])
    assert len(inside) == 300
    distance = (whole[0] - center).norm(dim=1)
    dropped = [float(d) for d, point in zip(distance, whole[0].tolist(), strict=True) if tuple(point) not in inside]
    assert len(dropped) == 700
    assert min(dropped) >= float((kept[0] - center).norm(dim=1).max())


def test_the_center_of_a_crop_stays_even_among_points_that_coincide(generator: torch.Generator) -> None:
    kept, count = pv.ball_crop(torch.zeros(3, 10, 3), 0.1, 0.1, generator)
    assert count.tolist() == [1, 1, 1]
    assert kept.shape == (3, 1, 3)


def test_shares_of_crops_are_drawn_for_each_cloud_between_their_bounds(generator: torch.Generator) -> None:
    _, count = pv.ball_crop(clouds(400, 100), 0.2, 0.5, generator)
    assert int(count.min()) >= 20
    assert int(count.max()) <= 50
    assert len(set(count.tolist())) > 20


def test_a_cloud_is_completed_with_means_of_four_neighbors_and_never_with_copies(generator: torch.Generator) -> None:
    line = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0])
    cloud = torch.stack([line, torch.zeros(8), torch.zeros(8)], dim=1)[None]
    grown = pv.complete(cloud, torch.tensor([8]), 16, generator)
    assert torch.equal(grown[0, :8], cloud[0])
    # all eight are used once: four of them have the mean 1.5, the others 11.5
    assert sorted(grown[0, 8:, 0].tolist()) == [1.5] * 4 + [11.5] * 4


def test_each_cloud_of_a_batch_is_completed_by_its_own_points_alone(generator: torch.Generator) -> None:
    points = torch.full((3, 40, 3), 1e6)  # rows behind the count have no meaning
    counts = torch.tensor([10, 3, 40])
    for row, count in enumerate(counts.tolist()):
        points[row, :count] = row + torch.rand(count, 3, generator=generator)
    grown = pv.complete(points, counts, 40, generator)
    assert grown.shape == (3, 40, 3)
    for row, count in enumerate(counts.tolist()):
        assert torch.equal(grown[row, :count], points[row, :count])
        assert bool(((grown[row] >= row) & (grown[row] <= row + 1)).all())
        assert not rows(grown[row, :count]) & rows(grown[row, count:]), "points were repeated"


def test_a_point_is_used_once_in_a_pass(generator: torch.Generator) -> None:
    cloud = clouds(1, 10)
    grown = pv.complete(cloud, torch.tensor([10]), 20, generator)[0, 10:]
    means = torch.stack(
        [cloud[0, near].mean(0) for near in torch.cdist(cloud, cloud)[0].topk(4, largest=False).indices]
    )
    for axis in range(3):
        assert torch.allclose(grown[:, axis].sort().values, means[:, axis].sort().values, atol=1e-6)


def test_of_too_many_points_a_random_subset_is_kept(generator: torch.Generator) -> None:
    cloud = clouds(2, 30)
    kept = pv.complete(cloud, torch.tensor([30, 5]), 12, generator)
    assert rows(kept[0]) < rows(cloud[0])
    assert len(rows(kept[0])) == 12
    assert torch.equal(kept[1, :5], cloud[1, :5])
    assert torch.equal(cloud, clouds(2, 30)), "the cloud that went in was changed"


def test_a_single_point_stays_where_it_is(generator: torch.Generator) -> None:
    grown = pv.complete(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([1]), 5, generator)
    assert torch.equal(grown[0], torch.tensor([1.0, 2.0, 3.0]).expand(5, 3))


def test_farthest_points_of_a_line() -> None:
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [10, 0, 0]])[None]
    assert pv.farthest_points(line, 3).tolist() == [[0, 2, 1]]
    with pytest.raises(ValueError, match="3 points have no 4"):
        pv.farthest_points(line, 4)


def test_farthest_points_cover_a_cloud_better_than_random_ones() -> None:
    cloud = clouds(1, 500)
    far = pv.taken(cloud, pv.farthest_points(cloud, 20))
    reach = torch.cdist(cloud, far).amin(2).amax()
    assert float(reach) < float(torch.cdist(cloud, cloud[:, :20]).amin(2).amax())
    assert len(rows(far[0])) == 20


def test_shuffling_and_subsets_take_points_as_they_are(generator: torch.Generator) -> None:
    cloud = clouds(2, 50)
    mixed = pv.shuffle(cloud, generator)
    assert not torch.equal(mixed, cloud)
    assert [rows(one) for one in mixed] == [rows(one) for one in cloud]
    few = pv.subset(cloud, 7, generator)
    assert few.shape == (2, 7, 3)
    assert all(rows(part) < rows(whole) for part, whole in zip(few, cloud, strict=True))


def test_equal_seeds_draw_equal_views() -> None:
    def drawn() -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return pv.complete(*pv.ball_crop(pv.rotate(clouds(3, 40), generator), 0.2, 0.5, generator), 36, generator)

    assert torch.equal(drawn(), drawn())
