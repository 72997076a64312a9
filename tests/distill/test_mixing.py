from __future__ import annotations

import pytest
import torch

from fedlab.distill.mixing import Mix, cut_box, draw_mix, mix


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cutmix_pastes_one_rectangle_and_knows_its_share() -> None:
    x = torch.randn(6, 2, 8, 8)
    for seed in range(20):
        how = draw_mix("cutmix", 6, (8, 8), generator(seed))
        mixed = mix(x, how)
        assert how.box is not None
        top, bottom, left, right = how.box
        assert torch.equal(mixed[..., top:bottom, left:right], x[how.permutation][..., top:bottom, left:right])
        changed = mixed.clone()
        changed[..., top:bottom, left:right] = x[..., top:bottom, left:right]
        assert torch.equal(changed, x)
        assert how.share == pytest.approx(1 - (bottom - top) * (right - left) / 64)


def test_a_share_of_one_leaves_the_image_unchanged() -> None:
    box = cut_box(1.0, (8, 8), (0.5, 0.5))
    assert (box[1] - box[0]) * (box[3] - box[2]) == 0
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(mix(x, Mix(torch.tensor([1, 2, 0]), 1.0, box)), x)
    assert torch.equal(mix(x, Mix(torch.tensor([1, 2, 0]), 1.0, None)), x)


def test_a_share_of_nothing_is_the_partner() -> None:
    assert cut_box(0.0, (8, 6), (0.5, 0.5)) == (0, 8, 0, 6)


def test_mixup_blends_with_a_beta_distribution() -> None:
    shares = torch.tensor([draw_mix("mixup", 2, (4, 4), generator(seed)).share for seed in range(2000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of β(a, a)
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(mix(x, Mix(torch.tensor([1, 0]), 0.25, None)), 0.25 * x + 0.75 * x.flip(0))


def test_cutmix_shares_are_uniform_before_clipping() -> None:
    shares = torch.tensor([draw_mix("cutmix", 2, (64, 64), generator(seed)).share for seed in range(2000)])
    assert shares.min() < 0.2
    assert shares.mean() > 0.5  # rectangles that reach beyond the border lose area


def test_nothing_is_nothing() -> None:
    x = torch.randn(3, 1, 4, 4)
    how = draw_mix("none", 3, (4, 4), generator())
    assert torch.equal(mix(x, how), x)
    assert how.share == 1
