"""Pixels of normalized images, and what networks take."""

from __future__ import annotations

import torch

from fedlab.models.pixels import Pixels, Prepared


def test_normalization_is_undone_and_made_anew() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    normalized = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(Pixels(mean, std)(normalized), pixels, atol=1e-6)
    assert torch.allclose(Prepared(mean, std)(pixels), normalized, atol=1e-5)
    assert torch.equal(Pixels((0.5,), (0.5,))(torch.tensor([[[[-3.0, 3.0]]]])), torch.tensor([[[[0.0, 1.0]]]]))


def test_images_of_another_size_are_resized_and_stay_pixels() -> None:
    prepare = Prepared((0.0,), (1.0,), 6)
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1.0
    found = prepare(step)
    assert found.shape == (1, 3, 6, 6)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    same = torch.rand(1, 3, 6, 6)
    assert torch.equal(prepare(same), same)


def test_statistics_are_no_state() -> None:
    assert not Pixels((0.5,), (0.5,)).state_dict()
    assert not Prepared((0.5,), (0.5,), 3).state_dict()
