from __future__ import annotations

import torch
from torch.nn import functional as F

from fedlab.distill.mask_views import flip_and_shift


def test_images_and_masks_stay_aligned() -> None:
    """The image is its mask enlarged, so it must still be after any flip and shift."""
    masks = torch.randint(1, 9, (40, 6, 8), generator=torch.Generator().manual_seed(0))
    images = F.interpolate(masks[:, None].float(), scale_factor=4, mode="nearest")
    x, y = flip_and_shift(images, masks, 0.5, 2, torch.Generator().manual_seed(1))
    enlarged = F.interpolate(y[:, None].float(), scale_factor=4, mode="nearest")
    assert torch.equal(torch.where(enlarged < 0, 0, enlarged), x)
    outside = (y < 0).flatten(1).sum(1)
    assert outside.min() == 0
    assert outside.max() == 6 * 8 - 4 * 6
    kept = (masks.flip(-1)[outside == 0] == y[outside == 0]).flatten(1).all(1)
    assert 0 < kept.sum() < len(kept)


def test_augmentation_is_the_generators_and_leaves_its_inputs() -> None:
    data = {
        "image": torch.rand(3, 3, 36, 36, generator=torch.Generator().manual_seed(5)).repeat(3, 1, 1, 1),
        "mask": torch.arange(9 * 81).reshape(9, 9, 9) % 4,
    }
    before = {name: value.clone() for name, value in data.items()}
    first, second, other = (
        flip_and_shift(data["image"], data["mask"], 0.5, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(data[name], before[name]) for name in data)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])
    plain = flip_and_shift(data["image"], data["mask"], 0, 0, torch.Generator().manual_seed(0))
    assert torch.equal(plain[0], data["image"])
    assert torch.equal(plain[1], data["mask"])
