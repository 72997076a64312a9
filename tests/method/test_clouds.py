"""Pictures of point clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedlab.method import point_clouds, save_picture
from fedlab.method.clouds import _seen_from_above

pytestmark = pytest.mark.usefixtures("drawn_charts")


def ink(path: Path) -> np.ndarray:
    """Where a picture is colored, which excludes the gray of frames and letters."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colored: np.ndarray = pixels.max(axis=2) - pixels.min(axis=2) > 40
    return colored


def test_clouds_are_seen_obliquely_from_above() -> None:
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    right, up, towards = _seen_from_above(axes)[:3].T
    assert up[2] > 0.8, "the third axis points up"
    assert abs(right[2]) < 1e-9
    assert right[0] > 0
    assert towards[2] > 0, "from above"
    distances = np.linalg.norm(_seen_from_above(axes)[:, None] - _seen_from_above(axes), axis=2)
    assert np.allclose(distances, torch.cdist(axes, axes).numpy(), atol=1e-6), "turned and not distorted"


def test_a_row_has_one_scale(tmp_path: Path) -> None:
    cloud = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    picture = point_clouds([[cloud, 5 + 0.3 * cloud]], column_labels=("whole", "part"))
    seen = ink(save_picture(picture, tmp_path / "x.png"))
    middle = round(0.515 * seen.shape[1])  # there is room for labels on the left
    heights = [np.ptp(np.flatnonzero(half.any(axis=1))) for half in (seen[:, :middle], seen[:, middle:])]
    assert heights[1] < 0.45 * heights[0]
    assert heights[1] > 0.15 * heights[0], "each cloud is drawn around its own middle"


def test_clouds_of_any_size_and_points_that_are_not_finite_can_be_drawn(tmp_path: Path) -> None:
    broken = torch.tensor([[0.0, 0, 0], [torch.nan, 0, 0], [1, 1, 1]])
    nothing = torch.full((4, 3), torch.inf)
    picture = point_clouds([[broken, nothing], [torch.zeros(1, 3), torch.rand(5000, 3)]], row_labels=("a$", "b"))
    assert ink(save_picture(picture, tmp_path / "x.png")).any()
    again = point_clouds([[broken, nothing], [torch.zeros(1, 3), torch.rand(5, 3)]])
    assert save_picture(again, tmp_path / "y.png").read_bytes() == save_picture(again, tmp_path / "z.png").read_bytes()
