from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.distill import gmml

SIZE = (592, 128)


def coverage(corruption: gmml.Corruption) -> np.ndarray:
    shares: np.ndarray = corruption.mask.float().mean((1, 2)).numpy()
    return shares


@pytest.fixture(scope="module")
def many() -> gmml.Corruption:
    return gmml.draw(300, SIZE, torch.Generator().manual_seed(0))


def test_either_kind_covers_its_share_and_at_most_one_block_more(many: gmml.Corruption) -> None:
    replaced, shares = many.replaced.numpy(), coverage(many)
    assert shares[~replaced].min() >= 0.5
    assert shares[~replaced].max() < 0.7859
    assert shares[replaced].min() >= 0.3
    assert shares[replaced].max() < 0.3859
    assert 0.55 < shares[~replaced].mean() < 0.65  # U(0.5, 0.7) and half a block


def test_half_of_the_samples_are_of_each_kind_and_partners_are_uniform(many: gmml.Corruption) -> None:
    assert 120 < int(many.replaced.sum()) < 180
    assert 170 < len(many.partner.unique()) < 210  # 300 (1 − 1/e)
    assert 0 <= int(many.partner.min()) <= int(many.partner.max()) < 300


def test_a_single_block_is_176_by_37_at_most_and_not_aligned_with_patches() -> None:
    rng = np.random.default_rng(0)
    highs, wides, tops = set(), set(), set()
    for _ in range(4000):
        mask = gmml.block_mask(SIZE, 1e-9, rng)
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        assert mask.sum() == len(rows) * len(columns)
        highs.add(len(rows))
        wides.add(len(columns))
        tops.add(int(rows[0]) % 16)
    assert (min(highs), max(highs)) == (1, 176)
    assert (min(wides), max(wides)) == (1, 37)
    assert tops == set(range(16))


@pytest.mark.parametrize("align", [1, 8])
def test_no_block_starts_in_the_last_row_or_column_but_some_reach_them(align: int) -> None:
    rng = np.random.default_rng(0)
    masks = [gmml.block_mask((64, 32), 1e-9, rng, block=0.5, align=align) for _ in range(2000)]
    tops, lefts = (sorted({int(mask.any(axis).argmax()) for mask in masks}) for axis in (1, 0))
    assert (tops, lefts) == ([*range(0, 64 - align, align)], [*range(0, 32 - align, align)])
    assert any(mask[-1].any() for mask in masks)
    assert any(mask[:, -1].any() for mask in masks)


def test_blocks_can_be_aligned() -> None:
    mask = gmml.block_mask(SIZE, 0.5, np.random.default_rng(0), align=16)
    patches = mask.reshape(37, 16, 8, 16).swapaxes(1, 2).reshape(37 * 8, -1)
    assert set(patches.mean(1)) == {0.0, 1.0}


def test_only_masked_pixels_change_and_to_zero_or_the_clean_partner() -> None:
    clean = torch.randn(64, 64, 32, generator=torch.Generator().manual_seed(1)) + 10
    corruption = gmml.draw(64, (64, 32), torch.Generator().manual_seed(2))
    seen = gmml.apply(clean, corruption)
    assert torch.equal(seen[~corruption.mask], clean[~corruption.mask])
    zeroed, foreign = corruption.mask.clone(), corruption.mask.clone()
    zeroed[corruption.replaced] = False
    foreign[~corruption.replaced] = False
    assert not seen[zeroed].any()
    assert torch.equal(seen[foreign], clean[corruption.partner][foreign])
    assert zeroed.any()
    assert foreign.any()


def test_draws_depend_on_the_generator_alone() -> None:
    first, second, other = (gmml.draw(4, (64, 32), torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.mask, other.mask)


def test_small_maps_and_whole_coverage_end() -> None:
    for size in ((8, 8), (3, 2), (1, 1)):
        assert gmml.block_mask(size, 1.0, np.random.default_rng(0)).all()
    for align in (2, 5, 8):
        assert gmml.block_mask((40, 40), 1.0, np.random.default_rng(0), align=align).all()
