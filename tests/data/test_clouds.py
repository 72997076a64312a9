"""Point clouds in the unit ball, and parts of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.data.clouds import parts, unit_ball
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError


def test_the_unit_ball_has_the_mean_at_its_center_and_one_point_at_its_rim() -> None:
    clouds = np.random.default_rng(0).normal(5, 3, (4, 100, 3))
    ready = unit_ball(clouds)
    assert np.allclose(ready.mean(axis=1), 0)
    assert np.allclose(np.linalg.norm(ready, axis=2).max(axis=1), 1)
    assert np.allclose(ready, unit_ball(7 * clouds - 2)), "neither place nor size matters"


def test_points_that_all_coincide_stay_finite() -> None:
    assert (unit_ball(np.full((1, 5, 3), 4.0)) == 0).all()


def test_parts_are_balls_of_a_shape_and_the_same_in_every_run() -> None:
    torch.manual_seed(0)
    clouds = torch.randn(300, 64, 3)
    seen = parts(clouds)
    assert seen.shape == (300, 32, 3)
    assert torch.equal(seen, parts(clouds.clone()))
    own = (seen[:, :, None] == clouds[:, None]).all(3).any(2).sum(1)
    assert int(own.min()) >= 16
    assert int(own.max()) <= 32, "a quarter to a half of the points, the others are between them"
    assert float(seen.std(1).mean()) < 0.9 * float(clouds.std(1).mean())


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 3, 10), np.float32), np.zeros((4, 10, 3)), np.zeros((4, 3), np.float32)]
)
def test_a_column_of_points_holds_clouds(wrong: np.ndarray) -> None:
    samples = Samples({"points": wrong})
    with pytest.raises(DataError, match=r"\(n, N, 3\), float32"):
        Dataset("wrong", samples, samples)
