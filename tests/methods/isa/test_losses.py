"""Known answers of ISA's losses (the numbers are those of the specification's checks)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedlab.methods.isa.losses import contrastive_distillation, hard_negatives, local_alignment

TAU = 0.07


def unit(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


# 1, 2: contrast


def test_equal_similarities_cost_the_logarithm_of_the_batch() -> None:
    same = torch.ones(64, 5)
    assert float(contrastive_distillation(same, unit(1, 5).expand(64, 5), TAU)) == pytest.approx(4.1589, abs=1e-4)


def test_orthonormal_pairs_cost_next_to_nothing() -> None:
    found = float(contrastive_distillation(torch.eye(64), torch.eye(64), TAU))
    assert found == pytest.approx(3.94e-5, rel=2e-3)
    assert found == pytest.approx(math.log1p(63 * math.exp(-1 / TAU)), rel=1e-3)


def test_a_sentence_finds_its_image_and_not_the_other_way_round() -> None:
    u, v = unit(5, seed=1), unit(5, seed=2)
    logits = u @ v.T / TAU
    one = float(F.cross_entropy(logits, torch.arange(5)))
    other = float(F.cross_entropy(logits.T, torch.arange(5)))
    assert one != pytest.approx(other, rel=1e-3)
    assert float(contrastive_distillation(u, v, TAU)) == pytest.approx(one)
    assert float(contrastive_distillation(u, v, TAU, symmetric=True)) == pytest.approx((one + other) / 2)


def test_anchors_are_further_negatives() -> None:
    u, v, anchors = unit(4, seed=1), unit(4, seed=2), unit(3, seed=3)
    expected = F.cross_entropy(u @ torch.cat([v, anchors]).T / TAU, torch.arange(4))
    assert float(contrastive_distillation(u, v, TAU, anchors=anchors)) == pytest.approx(float(expected))


# 11: the soft target


def test_the_soft_contrast_is_least_for_the_images_own_vectors() -> None:
    v = unit(6, seed=2)
    own = (v @ v.T / TAU).softmax(dim=1)
    entropy = float(-(own * own.log()).sum(dim=1).mean())
    assert float(contrastive_distillation(v, v, TAU, contrast="soft")) == pytest.approx(entropy, rel=1e-5)
    for seed in range(3, 8):
        assert float(contrastive_distillation(unit(6, seed=seed), v, TAU, contrast="soft")) > entropy
    assert float(contrastive_distillation(v, v, TAU)) != pytest.approx(entropy, rel=1e-3)


def test_no_gradient_reaches_the_frozen_vectors() -> None:
    u, v = unit(4, seed=1).requires_grad_(), unit(4, seed=2).requires_grad_()
    for contrast in ("hard", "soft"):
        contrastive_distillation(u, v, TAU, contrast=contrast).backward()  # type: ignore[arg-type]  # a literal
    assert u.grad is not None
    assert v.grad is None


# 3: alignment


def test_equal_logits_cost_the_logarithm_of_two() -> None:
    zeros = torch.zeros(7, 2)
    assert float(local_alignment(zeros, zeros)) == pytest.approx(0.6931, abs=1e-4)
    assert float(local_alignment(zeros)) == pytest.approx(0.6931, abs=1e-4)


def test_own_images_are_to_match_and_others_are_not() -> None:
    own, other = torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    p, q = own.softmax(dim=1)[:, 1], other.softmax(dim=1)[:, 1]
    expected = 0.5 * (-p.log().mean() - (1 - q).log().mean())
    assert float(local_alignment(own, other)) == pytest.approx(float(expected))
    assert float(local_alignment(own)) == pytest.approx(float(-p.log().mean()))


def test_sentences_without_a_negative_count_in_the_first_mean_only() -> None:
    own, other = torch.randn(3, 2), torch.randn(3, 2)
    positive = -own.log_softmax(dim=1)[:, 1].mean()
    negative = -other.log_softmax(dim=1)[1, 0]
    found = local_alignment(own, other, torch.tensor([False, True, False]))
    assert float(found) == pytest.approx(float((positive + negative) / 2))
    none = local_alignment(own, other, torch.zeros(3, dtype=torch.bool))
    assert float(none) == pytest.approx(float(positive / 2))


# negatives


def test_negatives_are_drawn_by_similarity_and_are_never_the_image_itself_or_a_duplicate() -> None:
    v = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.05], [0.8, 0.6], [0.0, 1.0]]), dim=1)
    generator, drawn = torch.Generator().manual_seed(0), torch.zeros(4, 4)
    for _ in range(4000):
        numbers, counts = hard_negatives(v, 0.3, 0.97, generator)
        assert bool(counts.all())
        drawn[torch.arange(4), numbers] += 1
    weights = (v @ v.T / 0.3).exp() * ~torch.eye(4, dtype=torch.bool)
    weights[0, 1] = weights[1, 0] = 0  # a cosine of 0.9988
    expected = weights / weights.sum(dim=1, keepdim=True)
    assert torch.allclose(drawn / 4000, expected, atol=0.03)
    assert drawn[0, 0] == drawn[0, 1] == 0


def test_images_without_any_other_have_no_negative() -> None:
    _, counts = hard_negatives(torch.ones(3, 1), TAU, 0.97, torch.Generator().manual_seed(0))
    assert not bool(counts.any())
