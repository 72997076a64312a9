from __future__ import annotations

import torch

from fedlab.distill.pixels import from_bytes, to_bytes, valid_range


def test_the_valid_range_is_black_to_white() -> None:
    low, high = valid_range((0.5,), (0.5,))
    assert (low.item(), high.item()) == (-1, 1)
    low, high = valid_range((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert low.shape == (1, 3, 1, 1)
    torch.testing.assert_close(low.flatten(), torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    torch.testing.assert_close(high.flatten(), torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))


def test_bytes_survive_the_way_through_normalized_space() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    for mean, std in (((0.5,), (0.5,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.0,), (1.0,))):
        assert torch.equal(to_bytes(from_bytes(every, mean, std), mean, std), every)


def test_values_outside_the_range_are_clipped() -> None:
    found = to_bytes(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5), (0.5,), (0.5,))
    assert found.flatten().tolist() == [0, 0, 128, 255, 255]
