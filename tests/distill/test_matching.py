from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.matching import distribution_matching, gradient_distance, pseudo_gradient
from fedlab.models.convnet import ConvNet


def test_matching_equal_sets_costs_nothing_and_moves_nothing() -> None:
    features, labels = torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    virtual = features.clone().requires_grad_()
    loss = distribution_matching(features, virtual, labels, labels, [0, 1])
    loss.backward()
    assert float(loss.detach()) == 0
    assert virtual.grad is not None
    assert not virtual.grad.any()


def test_a_shift_of_one_coordinate_costs_its_square_per_class() -> None:
    real, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    virtual = real.clone()
    virtual[labels == 1, 2] += 0.3
    assert float(distribution_matching(real, virtual, labels, labels, [0, 1, 2])) == pytest.approx(0.09)
    virtual = real + torch.tensor([0, 0, 0.3, 0], dtype=torch.float64)
    assert float(distribution_matching(real, virtual, labels, labels, [0, 1, 2])) == pytest.approx(3 * 0.09)


def test_one_virtual_sample_at_the_mean_feature_matches_a_whole_class() -> None:
    """Means are compared, so that a class need not have as many virtual samples, nor any equal to a real one."""
    real = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 4.0], [7.0, 7.0]])
    labels, virtual_labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1])
    virtual = torch.tensor([[2.0, 2.0], [7.0, 7.0]], requires_grad=True)
    loss = distribution_matching(real, virtual, labels, virtual_labels, [0, 1])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert virtual.grad is not None
    assert virtual.grad.abs().max() < 1e-6
    # the mean of the two means is not enough: (2, 2) against (2.5, 1.5) costs 0.5
    moved = torch.tensor([[2.5, 1.5], [7.0, 7.0]])
    assert float(distribution_matching(real, moved, labels, virtual_labels, [0, 1])) == pytest.approx(0.5)


def test_repeated_images_and_sample_order_change_nothing() -> None:
    real, real_labels = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    virtual, labels = torch.randn(3, 4, dtype=torch.float64), torch.arange(3)
    loss = distribution_matching(real, virtual, real_labels, labels, [0, 1, 2])
    repeated = distribution_matching(real, virtual.repeat(5, 1), real_labels, labels.repeat(5), [0, 1, 2])
    order = torch.randperm(9)
    shuffled = distribution_matching(real[order], virtual, real_labels[order], labels, [0, 1, 2])
    torch.testing.assert_close(repeated, loss)
    torch.testing.assert_close(shuffled, loss)


def test_classes_missing_on_one_side_add_nothing() -> None:
    real, virtual = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    loss = distribution_matching(real, virtual, torch.tensor([0, 0, 2, 2]), torch.tensor([0, 0, 1, 1]), [0, 1, 2, 7])
    expected = (real[:2].mean(0) - virtual[:2].mean(0)).square().sum()
    torch.testing.assert_close(loss, expected)
    empty = distribution_matching(
        real[:0], virtual, torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0, 1, 1]), [0, 1]
    )
    assert float(empty.detach()) == 0


def test_the_real_side_is_a_target() -> None:
    real, virtual = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(4, dtype=torch.int64)
    distribution_matching(real, virtual.float(), labels, labels, [0]).backward()
    assert real.grad is None
    fixed = real.detach().double()
    assert torch.autograd.gradcheck(lambda v: distribution_matching(fixed, v, labels, labels, [0]), (virtual,))


def test_matching_of_half_precision_features_is_computed_in_float32() -> None:
    labels = torch.zeros(300, dtype=torch.int64)
    real, virtual = torch.randn(300, 4).bfloat16(), torch.randn(300, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distribution_matching(real, virtual, labels, labels, [0])
    assert loss.dtype == torch.float32
    assert loss == distribution_matching(real.float(), virtual.float(), labels, labels, [0])


@pytest.fixture(scope="module")
def gradient() -> list[Tensor]:
    """Of the paper's ConvNet for 28×28 RGB and ten classes, norms far above the distance's epsilon."""
    generator = torch.Generator().manual_seed(0)
    model = ConvNet(ConvNet.Settings(), (3, 28, 28), 10)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


ROWS = 3 * 128 + 10


def test_gradient_distance_known_answers(gradient: list[Tensor]) -> None:
    zero = [torch.zeros_like(g) for g in gradient]
    assert float(gradient_distance(gradient, gradient)) == pytest.approx(0, abs=1e-3)
    assert float(gradient_distance(gradient, [-g for g in gradient])) == pytest.approx(2 * ROWS, rel=1e-6)
    assert float(gradient_distance(gradient, zero)) == ROWS == 394
    assert float(gradient_distance(zero, gradient)) == ROWS


def test_gradient_distance_ignores_scale_and_biases(gradient: list[Tensor]) -> None:
    other = [torch.randn(g.shape, generator=torch.Generator().manual_seed(1)) for g in gradient]
    distance = gradient_distance(gradient, other)
    assert float(distance) == pytest.approx(ROWS, rel=0.02)  # random directions hardly overlap
    for factor in (0.01, 19.0, 1e4):
        assert float(gradient_distance(gradient, [factor * g for g in other])) == pytest.approx(
            float(distance), rel=1e-4
        )
    biases_moved = [g + (g.ndim < 2) for g in other]
    assert gradient_distance(gradient, biases_moved) == distance


def test_gradient_distance_is_a_sum_over_output_rows() -> None:
    a, b = torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, 2, dtype=torch.float64)
    rows = sum(1 - F.cosine_similarity(a[r].flatten(), b[r].flatten(), dim=0) for r in range(3))
    assert float(gradient_distance([a], [b])) == pytest.approx(float(rows), abs=1e-5)
    whole = 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    assert float(gradient_distance([a[:1], a[1:]], [b[:1], b[1:]], "cos")) == pytest.approx(float(whole), abs=1e-5)
    biases = torch.zeros(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
    squares = (a - b).square().sum() + 12
    assert float(gradient_distance([a, biases[0]], [b, biases[1]], "mse")) == pytest.approx(float(squares))


@pytest.mark.parametrize("kind", ["rowcos", "cos", "mse"])
def test_gradient_distance_has_the_right_gradient(kind: str) -> None:
    target = [torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    moving = [torch.randn_like(t).requires_grad_() for t in target]
    assert torch.autograd.gradcheck(lambda *g: gradient_distance(g, target, kind), moving)  # type: ignore[arg-type]  # parametrized


def test_dead_rows_give_no_nan() -> None:
    moving = torch.randn(3, 4)
    moving[1] = 0
    moving.requires_grad_()
    gradient_distance([moving], [torch.randn(3, 4)]).backward()
    assert moving.grad is not None
    assert torch.isfinite(moving.grad).all()


def test_gradients_of_different_models_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        gradient_distance([torch.ones(2, 2)], [torch.ones(2, 2), torch.ones(2)])


def test_the_pseudo_gradient_is_the_sum_of_the_applied_gradients() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    before, applied = weight.detach().clone(), torch.zeros(3, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        (weight @ torch.randn(4, 2, dtype=torch.float64)).square().sum().backward()
        assert weight.grad is not None
        applied += weight.grad
        optimizer.step()
    torch.testing.assert_close(pseudo_gradient([before], [weight.detach()], 0.05), [applied])
