from __future__ import annotations

import math

import pytest
import torch

from fedlab.distill.mask_matching import assigned, dice, dice_table, mask_losses


def masks() -> torch.Tensor:
    """Four disjoint rows of a 4 × 4 grid."""
    return torch.eye(4)[:, :, None].expand(4, 4, 4)


def test_dice_of_equal_disjoint_and_half_covered_masks() -> None:
    rows = masks()
    assert torch.equal(dice_table(rows, rows), torch.eye(4))
    both = rows[0] + rows[1]
    assert float(dice_table(rows[:1], both[None])) == pytest.approx(2 * 4 / (4 + 8))
    assert dice(rows[:2], torch.stack([both, rows[2]])).tolist() == pytest.approx([2 / 3, 0])
    assert float(dice(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))) == 0


def test_dice_weighs_probabilities() -> None:
    assert float(dice(torch.full((1, 2, 2), 0.5), torch.ones(1, 2, 2, dtype=torch.bool))) == pytest.approx(2 * 2 / 6)


def test_permuted_masks_are_matched_by_the_inverse_permutation() -> None:
    order = torch.tensor([2, 0, 3, 1])
    rows, columns = assigned(1 - dice_table(masks(), masks()[order]))
    assert rows.tolist() == [0, 1, 2, 3]
    assert columns.tolist() == order.argsort().tolist()
    assert float((1 - dice_table(masks(), masks()[order]))[rows, columns].sum()) == 0


def test_the_cheapest_assignment_is_that_of_the_sum_and_not_the_first_best() -> None:
    cost = torch.tensor([[0.0, 0.1], [0.2, 0.9]])
    rows, columns = assigned(cost)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (3, 0), (0, 3)])
def test_the_smaller_side_is_assigned_in_full(shape: tuple[int, int]) -> None:
    rows, columns = assigned(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    assert len(rows) == len(set(columns.tolist())) == min(shape)


def test_losses_of_logits_that_say_nothing() -> None:
    targets = torch.zeros(2, 2, 2, dtype=torch.bool)
    targets[:, 0] = True
    bce, overlap = mask_losses(torch.zeros(2, 2, 2), targets)
    assert float(bce) == pytest.approx(math.log(2))
    assert float(overlap) == pytest.approx(1 - 2 * 1 / (2 + 2))


def test_losses_of_right_and_of_wrong_masks() -> None:
    targets = masks()[:2] > 0
    right = torch.where(targets, 30.0, -30.0)
    assert [float(value) for value in mask_losses(right, targets)] == pytest.approx([0, 0], abs=1e-6)
    bce, overlap = mask_losses(-right, targets)
    assert float(bce) == pytest.approx(30)
    assert float(overlap) == pytest.approx(1)
