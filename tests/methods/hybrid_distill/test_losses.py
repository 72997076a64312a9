"""The two terms of the loss, with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedlab.methods.hybrid_distill.losses import feature_loss, relation_loss, token_relations


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# features


def test_targets_are_normalized_over_their_channels() -> None:
    target = 7 + 3 * drawn(2, 5, 16)
    white = (target - target.mean(-1, keepdim=True)) / (target.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert float(feature_loss(white, target)) == pytest.approx(0, abs=1e-10)
    assert float(feature_loss(target, target, whiten=False)) == 0
    assert float(white.square().mean(-1).min()) == pytest.approx(1, abs=1e-4)


def test_a_student_without_features_has_the_loss_of_targets_of_mean_square_1() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(8).expand(2, 3, 16)
    assert float(feature_loss(torch.zeros(2, 3, 16), signs)) == pytest.approx(0.5, abs=1e-4)
    assert 0 < float(feature_loss(torch.zeros(2, 3, 16), drawn(2, 3, 16))) <= 0.5


def test_the_distance_of_features_is_linear_beyond_1_and_quadratic_below() -> None:
    target = drawn(2, 3, 8)
    assert float(feature_loss(target + 3, target, whiten=False)) == pytest.approx(2.5)
    assert float(feature_loss(target + 0.5, target, whiten=False)) == pytest.approx(0.125)


# relations


def vectors(n: int = 2, heads: int = 4, tokens: int = 5, dim: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = drawn(3, n, heads, tokens, dim)
    return query, key, value


def test_relations_are_products_before_the_softmax_of_each_head() -> None:
    query, key, value = vectors()
    (found,) = token_relations((query, key, value), 4)
    assert found.shape == (2, 4, 5, 5)
    assert torch.allclose(found[1, 2], query[1, 2] @ key[1, 2].T / math.sqrt(3), atol=1e-6)
    both = token_relations((query, key, value), 4, ("qk", "vv"))
    assert torch.equal(both[0], found)
    assert torch.allclose(both[1][0, 1], value[0, 1] @ value[0, 1].T / math.sqrt(3), atol=1e-6)


def test_relations_without_scale() -> None:
    query, key, value = vectors()
    (found,) = token_relations((query, key, value), 4, scale=False)
    assert torch.allclose(found, query @ key.transpose(2, 3), atol=1e-6)


def test_heads_are_joined_and_split_again() -> None:
    """With 2 relation heads of 4 · 3 channels, the first has the channels of heads 0 and 1."""
    query, key, value = vectors()
    (found,) = token_relations((query, key, value), 2)
    joined = [torch.cat([part[1, 0], part[1, 1]], dim=1) for part in (query, key)]
    assert found.shape == (2, 2, 5, 5)
    assert torch.allclose(found[1, 0], joined[0] @ joined[1].T / math.sqrt(6), atol=1e-6)


def test_models_of_different_widths_are_comparable() -> None:
    (wide,) = token_relations(vectors(heads=4, dim=6), 3)
    (narrow,) = token_relations(vectors(heads=2, dim=6), 3)
    assert wide.shape == narrow.shape == (2, 3, 5, 5)


@pytest.mark.parametrize(("shift", "loss"), [(3.0, 2.5), (-3.0, 2.5), (0.5, 0.125), (0.0, 0.0)])
def test_smooth_l1_of_relations_that_differ_by_a_constant(shift: float, loss: float) -> None:
    teacher = drawn(2, 4, 5, 5)
    assert float(relation_loss(teacher + shift, teacher)) == pytest.approx(loss, abs=1e-6)


def test_divergence_does_not_see_a_constant_of_a_row() -> None:
    teacher, constants = drawn(2, 4, 5, 5), drawn(2, 4, 5, 1, seed=1)
    assert float(relation_loss(teacher + constants, teacher, "kl")) == pytest.approx(0, abs=1e-6)
    columns = teacher + constants.transpose(2, 3)
    assert float(relation_loss(columns, teacher, "kl")) > 0.1


def test_divergence_of_a_student_without_queries_is_what_the_teachers_rows_lack_of_the_largest_entropy() -> None:
    teacher = 2 * drawn(2, 4, 5, 5)
    entropy = torch.special.entr(teacher.softmax(-1)).sum(-1).mean()
    flat = torch.zeros(2, 4, 5, 5)
    assert float(relation_loss(flat, teacher, "kl")) == pytest.approx(math.log(5) - float(entropy), rel=1e-5)
    assert float(relation_loss(flat, flat, "kl")) == pytest.approx(0, abs=1e-7)
    certain = 1e4 * torch.eye(5).expand(2, 4, 5, 5)
    assert float(relation_loss(flat, certain, "kl")) == pytest.approx(math.log(5), rel=1e-5)
    assert float(relation_loss(flat, certain, "kl")) == pytest.approx(1.6094, abs=1e-4)


def test_the_divergence_is_from_the_teacher_to_the_student() -> None:
    certain, flat = 20 * torch.eye(5)[None, None], torch.zeros(1, 1, 5, 5)
    assert float(relation_loss(certain, flat, "kl")) > 10


@pytest.mark.parametrize("distance", ["smooth_l1", "kl"])
def test_teachers_get_no_gradient(distance: str) -> None:
    student, teacher = drawn(1, 2, 3, 3).requires_grad_(), drawn(1, 2, 3, 3, seed=1).requires_grad_()
    relation_loss(student, teacher, distance).backward()  # type: ignore[arg-type]  # one of the two names
    assert student.grad is not None
    assert teacher.grad is None
    made, target = drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4, seed=1).requires_grad_()
    feature_loss(made, target).backward()
    assert made.grad is not None
    assert target.grad is None


def test_losses_are_computed_in_full_precision() -> None:
    student, teacher = (drawn(1, 2, 3, 3, seed=seed).bfloat16() for seed in (0, 1))
    assert relation_loss(student, teacher).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = token_relations(vectors(), 4)
    assert torch.equal(found, token_relations(vectors(), 4)[0])
