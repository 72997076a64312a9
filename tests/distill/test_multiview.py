from __future__ import annotations

import math

import pytest
import torch

from fedlab.distill.multiview import cross_view_loss, cross_view_terms, patch_loss
from fedlab.distill.prototypes import prototype_cross_entropy, sharpened


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equal_student_logits_give_ln_k_whatever_the_teacher_says() -> None:
    for size, expected in ((8192, 9.010913), (512, 6.238325), (64, 4.158883)):
        targets = [sharpened(drawn(3, size, seed=q), torch.zeros(size), 0.04) for q in range(2)]
        loss = cross_view_loss(targets, [torch.full((3, size), 0.3)] * 5, 0.1)
        assert float(loss) == pytest.approx(expected, abs=1e-5)
        assert float(patch_loss(torch.stack(targets), torch.zeros(2, 3, size), 0.1)) == pytest.approx(
            expected, abs=1e-5
        )


def test_two_views_of_the_teacher_and_v_of_the_student_make_2v_minus_2_terms() -> None:
    assert [cross_view_terms(2, v) for v in (2, 10, 18)] == [2, 18, 34]


def test_the_loss_is_the_mean_over_pairs_of_different_views() -> None:
    targets = [sharpened(drawn(3, 4, seed=q), torch.zeros(4), 0.1) for q in range(2)]
    logits = [drawn(3, 4, seed=10 + v) for v in range(4)]
    pairs = [(q, v) for q in range(2) for v in range(4) if q != v]
    expected = sum(float(prototype_cross_entropy(targets[q], logits[v], 0.5)) for q, v in pairs) / len(pairs)
    assert len(pairs) == cross_view_terms(2, 4)
    assert float(cross_view_loss(targets, logits, 0.5)) == pytest.approx(expected, rel=1e-6)


def test_a_view_never_teaches_itself() -> None:
    """A student that is right on the other view and arbitrarily wrong on its own loses nothing."""
    one, two = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    targets = [sharpened(one, torch.zeros(2), 1.0), sharpened(two, torch.zeros(2), 1.0)]
    assert float(cross_view_loss(targets, [two, one], 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(cross_view_loss(targets, [one, two], 1.0)) == pytest.approx(50, rel=1e-6)


def test_views_that_make_no_pairs_are_refused() -> None:
    p = torch.full((2, 3), 1 / 3)
    for targets, logits in (([p, p], [p]), ([p], [p]), ([], [p])):
        with pytest.raises(ValueError, match="no pairs"):
            cross_view_loss(targets, logits, 0.1)


def test_masked_patches_are_averaged_by_view_first() -> None:
    """Σ_i 1/|M_i| Σ_j H_ij over the number of views, of which one has no mask: (ln 2 + (50 + ln 2·0) / 2) / 3."""
    targets = torch.zeros(3, 2, 2)
    targets[..., 0] = 1
    logits = torch.zeros(3, 2, 2)
    logits[1, 0, 1] = 50  # H = 50
    logits[1, 1, 0] = 50  # H = 0
    logits[2, :, 1] = 1000
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    assert float(patch_loss(targets, logits, 1.0, mask)) == pytest.approx((math.log(2) + 25) / 3, rel=1e-6)


def test_patches_outside_the_mask_get_no_gradient() -> None:
    targets = sharpened(drawn(2, 3, 4), torch.zeros(4), 0.1)
    logits = drawn(2, 3, 4, seed=1).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False]])
    patch_loss(targets, logits, 0.1, mask).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(-1).bool().tolist() == mask.tolist()
