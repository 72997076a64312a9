"""The views of a shape: how many points, of which part, and what is done to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.distill import point_views
from fedlab.methods.dcglr.settings import DCGLRSettings
from fedlab.methods.dcglr.views import KINDS, global_view, local_view, views


def shapes(n: int, points: int) -> Tensor:
    """Points on the unit sphere."""
    x = torch.randn(n, points, 3, generator=torch.Generator().manual_seed(1))
    return x / x.norm(dim=2, keepdim=True)


def drawn(clouds: Tensor, seed: int = 0, **settings: Any) -> list[Tensor]:
    found: list[Tensor] = views(DCGLRSettings(**settings), {"points": clouds}, torch.Generator().manual_seed(seed))[
        KINDS
    ]
    return found


@pytest.mark.parametrize(("points", "whole", "part"), [(1024, 922, 512), (2048, 1844, 1024)])
def test_the_published_sizes(points: int, whole: int, part: int) -> None:
    kinds = drawn(shapes(2, points), local_views=2, resolutions=[64])
    assert [tuple(kind.shape) for kind in kinds] == [(2, 2, whole, 3), (2, 2, part, 3), (2, 2, 64, 3)]


def test_the_published_number_of_views() -> None:
    s = DCGLRSettings()
    assert 2 + s.local_views == 10
    assert 2 + s.local_views + 2 * len(s.resolutions) == 18
    assert len(drawn(shapes(1, 100), local_views=0, resolutions=[])) == 1


def test_local_views_are_parts_of_space_and_not_fewer_points() -> None:
    """A ball around a point of a sphere leaves most of it out; a subset of its points does not."""
    clouds = shapes(8, 400)
    whole, part = drawn(clouds, local_views=1, resolutions=[])
    subset = drawn(clouds, local_views=1, resolutions=[], local_crop=(1.0, 1.0))[1]
    wide = {name: float(kind[0].std(1).norm(dim=1).mean()) for name, kind in (("part", part), ("subset", subset))}
    assert wide["part"] < 0.85 * wide["subset"]
    assert wide["part"] < 0.85 * float(whole[0].std(1).norm(dim=1).mean())


def test_views_differ_from_each_other_and_between_seeds() -> None:
    clouds = shapes(3, 64)
    first, again, other = (drawn(clouds, seed, resolutions=[]) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][0], first[0][1])
    assert len({float(view.sum()) for view in first[1]}) == 8


def test_the_shapes_that_go_in_stay_as_they_are() -> None:
    clouds = shapes(3, 64)
    drawn(clouds, rotation="any", resolutions=[32])
    assert torch.equal(clouds, shapes(3, 64))


def test_reference_views_are_not_rotated() -> None:
    """Of an upright plate, global views stay upright unless a rotation is asked for."""
    plate = torch.rand(4, 200, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    plate[..., 2] = 0
    heights = {}
    for rotation in ("none", "up", "any"):
        view = drawn(plate, rotation=rotation, local_views=0, resolutions=[])[0]
        heights[rotation] = float(view.std(2)[..., 2].mean())
    assert heights["none"] < 0.02
    assert heights["up"] < 0.02
    assert heights["any"] > 0.05


def test_the_second_global_view_can_be_weaker() -> None:
    cloud = torch.ones(400, 30, 3)  # every crop is the same point, so that only scale, shift and jitter are left
    for weak in (False, True):
        first, second = drawn(cloud, weak_second=weak, local_views=0, resolutions=[])[0]
        for view, strong in ((first, True), (second, not weak)):
            low, high = (2 / 3 - 0.25, 1.5 + 0.25) if strong else (4 / 5 - 0.06, 5 / 4 + 0.06)
            assert low < float(view.min()) < low + 0.1
            assert high - 0.1 < float(view.max()) < high


def test_coarse_views_are_whole_shapes_moved_far_away() -> None:
    clouds = shapes(200, 64)
    far, near = (
        drawn(clouds, local_views=0, resolutions=[32], resolution_shift=most)[1].mean(2).abs().max()
        for most in (1.0, 0.2)
    )
    assert 0.9 < float(far) < 1.2
    assert float(near) < 0.4
    spread = drawn(clouds, local_views=0, resolutions=[32])[1].std(2).norm(dim=2)
    assert float(spread.min()) > 0.85, "a part of the shape only"


def test_completion_comes_after_scale_and_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all points of a shape coincide, only scale and shift tell shapes apart."""
    completed, original = list[Tensor](), point_views.complete

    def complete(points: Tensor, *others: Any) -> Tensor:
        completed.append(points)
        return original(points, *others)

    monkeypatch.setattr(point_views, "complete", complete)
    s, cloud = DCGLRSettings(), torch.ones(50, 40, 3)
    local_view(s, cloud, torch.Generator().manual_seed(0))
    global_view(s, cloud, torch.Generator().manual_seed(0))
    assert len(completed) == 2
    for points in completed:
        assert 0.15 < float(points[:, 0].std(0).mean()) < 0.4
