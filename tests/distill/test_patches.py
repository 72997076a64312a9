from __future__ import annotations

import pytest
import torch

from fedlab.distill.patches import masked_patch_error, patchify, standardized


def test_patches_hold_their_own_pixels_row_by_row() -> None:
    images = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4], images[1, :, 2:4, 2:4].flatten())


def test_standardized_patches_have_mean_0_and_unbiased_variance_1() -> None:
    patches = 3 + 5 * torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0))
    made = standardized(patches)
    assert torch.allclose(made.mean(-1), torch.zeros(2, 4), atol=1e-6)
    assert torch.allclose(made.var(-1, correction=1), torch.ones(2, 4), atol=1e-4)
    assert torch.equal(standardized(torch.full((1, 1, 12), 7.0)), torch.zeros(1, 1, 12))


def test_only_masked_patches_count_and_all_of_them_alike() -> None:
    wanted, made = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    made[0, 0], made[0, 1], made[1, 2] = 1.0, 100.0, 3.0
    masked = torch.tensor([[True, False, False], [False, False, True]])
    assert masked_patch_error(made, wanted, masked) == pytest.approx((1 + 9) / 2)
    assert masked_patch_error(made, wanted, torch.zeros_like(masked)) == 0
