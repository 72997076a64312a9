"""Known answers of ARRA's losses."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.methods.arra.losses import alignment_loss, next_token_loss, z_loss

ALL = torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (7.0, 0.0), (0.01, 0.0), (-3.0, 2.0)])
def test_alignment_depends_on_the_direction_alone(factor: float, expected: float) -> None:
    target = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    projected = factor * target[:, None].expand(-1, 4, -1)
    assert float(alignment_loss(projected, target, ALL)) == pytest.approx(expected, abs=1e-6)


def test_orthogonal_vectors_cost_one() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    assert float(alignment_loss(target.flip(1)[:, None].expand(-1, 4, -1), target, ALL)) == pytest.approx(1.0)


def test_alignment_is_the_mean_over_positions_and_not_the_cosine_of_their_mean() -> None:
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    along, across = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 9.0])
    projected = torch.stack([along, across, along, across]).expand(2, -1, -1)
    assert float(alignment_loss(projected, target, ALL)) == pytest.approx(0.5)


def test_positions_outside_the_mask_count_nothing_and_samples_count_alike() -> None:
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    projected = torch.tensor([[1.0, 0.0]]).repeat(8, 1).reshape(2, 4, 2)
    projected[0, 0] = torch.tensor([0.0, 1.0])
    one = torch.tensor([[True, True, False, False], [True, True, True, True]])
    # 1/2 of the first sample, none of the second
    assert float(alignment_loss(projected, target, one)) == pytest.approx(0.25)
    projected[0, 2] = torch.nan_to_num(torch.tensor([-1.0, 0.0]))
    assert float(alignment_loss(projected, target, one)) == pytest.approx(0.25)


def test_no_gradient_reaches_the_target() -> None:
    target, projected = torch.randn(2, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    alignment_loss(projected, target, ALL).backward()
    assert target.grad is None
    assert projected.grad is not None


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    ids, predicted = torch.randint(0, 100, (2, 5)), torch.tensor([[False, True, True, True, False]] * 2)
    assert float(next_token_loss(torch.zeros(2, 5, 100), ids, predicted)) == pytest.approx(math.log(100))
    codes_only = torch.full((2, 5, 100), -math.inf)
    codes_only[..., 36:] = 0.0
    codes = torch.randint(36, 100, (2, 5))
    assert float(next_token_loss(codes_only, codes, predicted)) == pytest.approx(4.1588831, abs=1e-6)


def test_the_loss_of_a_position_is_that_of_the_token_behind_it() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 50.0  # the first position knows that 2 comes next
    ids, first = torch.tensor([[1, 2, 3]]), torch.tensor([[True, False, False]])
    assert float(next_token_loss(logits, ids, first)) == pytest.approx(0.0, abs=1e-6)
    assert float(next_token_loss(logits, ids, first.roll(1, 1))) == pytest.approx(math.log(4))


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    logits = torch.zeros(1, 2, 8)
    logits[0, 1] = 1.0
    one, both = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    assert float(z_loss(logits, one)) == pytest.approx(math.log(8) ** 2)
    assert float(z_loss(logits, both)) == pytest.approx((math.log(8) ** 2 + (1 + math.log(8)) ** 2) / 2)
