from __future__ import annotations

import numpy as np
import torch

from fedlab.distill.masking import block_mask, block_masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_exactly_half_of_the_samples_are_masked_and_shares_are_spread() -> None:
    """20 of 41 samples; one share from each twentieth of [0.1, 0.5], of which never more is masked."""
    masks = block_masks(41, (16, 16), generator())
    shares = masks.float().mean((1, 2))
    masked = shares[shares > 0].sort().values
    assert len(masked) == 20
    bounds = 0.1 + 0.4 * torch.arange(1, 21) / 20
    assert (masked <= bounds + 1e-6).all()
    assert float((bounds - masked).mean()) < 0.08
    assert float(masked[-1]) > 0.4


def test_a_mask_never_covers_more_than_asked_and_mostly_nearly_as_much() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([block_mask((14, 14), 98, rng).sum() for _ in range(100)])
    assert counts.max() <= 98
    assert np.median(counts) >= 90


def test_the_first_rectangle_has_the_area_and_the_aspect_asked_for() -> None:
    rng, areas = np.random.default_rng(0), []
    for _ in range(500):
        mask = block_mask((30, 30), 4, rng)  # 4 patches: a single rectangle of area 4, or parts of it
        areas.append(int(mask.sum()))
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert max(rows, columns) <= 8
    assert max(areas) == 4
    assert not block_mask((30, 30), 0, rng).any()


def test_grids_in_which_nothing_fits_end() -> None:
    assert not block_mask((1, 1), 1, np.random.default_rng(0)).any()
    assert block_mask((2, 2), 4, np.random.default_rng(0)).sum() <= 4


def test_draws_depend_on_the_generator_alone() -> None:
    first, again, other = (block_masks(8, (7, 7), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert block_masks(8, (7, 7), generator(), masked=0.0).sum() == 0
    assert block_masks(8, (7, 7), generator(), masked=1.0, share=(0.3, 0.4)).flatten(1).any(1).all()
