"""Batch-hard triplets against known answers and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedlab.distill.triplet import batch_hard_triplet


def test_equal_distances_give_log_2() -> None:
    """An equilateral triangle: two of one class, one of another; its own positive is at distance 0."""
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    loss = batch_hard_triplet(features, torch.tensor([0, 0, 1]))
    alone = math.log1p(math.exp(-1))  # the third has itself as farthest positive
    assert float(loss) == pytest.approx((2 * math.log(2) + alone) / 3, abs=1e-6)


def test_it_takes_the_farthest_positive_and_the_nearest_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    distance = torch.cdist(features, features)
    expected = [
        F.softplus(
            max(distance[i, j] for j in range(12) if labels[j] == labels[i])
            - min(distance[i, j] for j in range(12) if labels[j] != labels[i])
        )
        for i in range(12)
    ]
    assert float(batch_hard_triplet(features, labels)) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)


def test_equal_samples_have_finite_gradients() -> None:
    features = torch.zeros(4, 3, requires_grad=True)
    batch_hard_triplet(features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_it_is_computed_in_full_precision_under_autocast() -> None:
    features, labels = 30 * torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_triplet(features, labels)
    assert torch.equal(loss, batch_hard_triplet(features, labels))


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        batch_hard_triplet(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
