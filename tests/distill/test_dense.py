"""Dense losses against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedlab.distill.dense import hierarchical_context_loss, pixel_cross_entropy


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 4), (3, 5), (4, 4), (8, 8), (16, 12)])
def test_a_constant_difference_costs_its_square_at_every_size(size: tuple[int, int]) -> None:
    teacher = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    loss = hierarchical_context_loss(teacher + 0.7, teacher)
    torch.testing.assert_close(loss, torch.tensor(0.49))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((8, 8), 1 / 1.875), ((4, 4), 1 / 1.75), ((2, 2), 1 / 1.5), ((2, 4), 1 / 1.5), ((1, 1), 1.0)],
)
def test_what_pooling_cancels_counts_at_full_resolution_only(size: tuple[int, int], expected: float) -> None:
    """A checkerboard of ±1: levels at or above the height are left out, and the weights halve per level used."""
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    board = (1.0 - 2.0 * ((rows + columns) % 2)).expand(2, 3, *size)
    loss = hierarchical_context_loss(board, torch.zeros(2, 3, *size))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_gradients_reach_the_student_in_full_precision() -> None:
    student = torch.randn(1, 2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = hierarchical_context_loss(student, torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16))
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    assert loss.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_unlabeled_positions_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    labels[0, :2] = -1
    changed = logits.clone()
    changed[0, :, :2] += 5 * torch.randn(3, 2, 4, generator=generator)
    weight = torch.tensor([0.4, 1.0, 2.0])
    assert torch.equal(pixel_cross_entropy(logits, labels, weight), pixel_cross_entropy(changed, labels, weight))
    scores, known = logits.movedim(1, -1)[labels >= 0], labels[labels >= 0]
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, weight), F.cross_entropy(scores, known, weight))


def test_nothing_labeled_costs_nothing_and_still_has_a_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((1, 2, 2), -1))
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
