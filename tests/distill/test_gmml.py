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


def test_reconstruction_counts_corrupted_pixels_of_the_whole_batch_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(3, 16, 8, generator=generator)
    mask = torch.rand(3, 16, 8, generator=generator) < torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    guess = torch.where(mask, clean + 1, 100 * torch.randn(3, 16, 8)).requires_grad_()
    loss = gmml.reconstruction_loss(guess, clean, mask)
    assert loss.item() == pytest.approx(1, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, guess)
    assert not gradient[~mask].any()
    assert gradient[mask].all()
    uneven = torch.where(mask, clean + torch.tensor([1.0, 2.0, 3.0])[:, None, None], clean)
    counts = mask.sum((1, 2)).float()
    expected = float((counts * torch.tensor([1.0, 2.0, 3.0])).sum() / counts.sum())  # not the mean by sample
    assert float(gmml.reconstruction_loss(uneven, clean, mask)) == pytest.approx(expected, rel=1e-5)
    assert float(gmml.reconstruction_loss(guess.detach(), clean, torch.zeros_like(mask))) == 0


# images


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_all_channels_of_an_image_share_the_mask_of_their_own_sample(channels: int) -> None:
    """Also where there are as many samples as channels, and a mask would broadcast over the wrong axis."""
    clean = torch.randn(3, channels, 24, 24, generator=torch.Generator().manual_seed(1)) + 10
    corruption = gmml.Corruption(
        gmml.draw(3, (24, 24), torch.Generator().manual_seed(2)).mask,
        torch.tensor([False, True, True]),
        torch.tensor([0, 2, 0]),
    )
    seen = gmml.apply(clean, corruption)
    for channel in range(channels):
        own = clean[:, channel]
        assert torch.equal(seen[:, channel], gmml.apply(own, corruption))
        changed = corruption.mask[1]
        assert torch.equal(seen[1, channel][changed], own[2][changed])
        assert torch.equal(seen[1, channel][~changed], own[1][~changed])
    assert not seen[0].permute(1, 2, 0)[corruption.mask[0]].any()


def test_the_share_of_an_image_is_that_of_a_single_channel() -> None:
    """Zeroed images of three channels are covered by 0.5 to 0.5 and a block, and not by a third of that."""
    corruption = gmml.draw(40, (48, 48), torch.Generator().manual_seed(0), drop=0.5)
    seen = gmml.apply(torch.ones(40, 3, 48, 48), corruption._replace(replaced=torch.zeros(40, dtype=torch.bool)))
    shares = (seen == 0).float().mean((1, 2, 3))
    zeroed = shares[~corruption.replaced]
    assert zeroed.min() >= 0.5
    assert zeroed.max() < 0.5 + 0.3**2


def test_masks_that_do_not_fit_are_refused() -> None:
    drawn = gmml.draw(3, (24, 24), torch.Generator().manual_seed(2))
    for shape in ((2, 3, 24, 24), (3, 3, 24, 16), (3, 24)):
        with pytest.raises(ValueError, match="does not fit"):
            gmml.apply(torch.zeros(shape), drawn)
        with pytest.raises(ValueError, match="does not fit"):
            gmml.reconstruction_loss(torch.zeros(shape), torch.zeros(shape), drawn.mask)


def test_the_reconstruction_of_images_counts_every_corrupted_value_once() -> None:
    """Two of four pixels are corrupted; errors of 1, 2 and 3 by channel have the mean 2."""
    clean, mask = torch.zeros(1, 3, 2, 2), torch.tensor([[[True, False], [False, True]]])
    guess = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None].expand(1, 3, 2, 2).clone()
    guess[:, :, 0, 1] = 100
    assert float(gmml.reconstruction_loss(guess, clean, mask)) == pytest.approx(2)


def test_views_below_each_other_keep_their_own_partners() -> None:
    parts = [gmml.draw(4, (16, 16), torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)]
    whole = gmml.joined(parts)
    assert torch.equal(whole.mask, torch.cat([part.mask for part in parts]))
    assert torch.equal(whole.replaced, torch.cat([part.replaced for part in parts]))
    assert (whole.partner // 4).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(whole.partner % 4, torch.cat([part.partner for part in parts]))


def test_untouched_samples_stay_as_they_are() -> None:
    clean = torch.randn(3, 2, 8, 8)
    assert torch.equal(gmml.apply(clean, gmml.untouched(3, (8, 8))), clean)
