from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedlab.distill.contrastive import supervised_contrastive


def by_loops(features: Tensor, labels: Tensor, temperature: float) -> float:
    z = [f / f.norm() for f in features.double()]
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        exponentials = {a: math.exp(float(z[i] @ z[a]) / temperature) for a in others}
        total -= sum(math.log(exponentials[p] / sum(exponentials.values())) for p in positives) / len(positives)
    return total / len(z)


@pytest.mark.parametrize(
    ("features", "labels", "expected"),
    [
        (torch.ones(4, 3), [0, 0, 1, 1], math.log(3)),
        (torch.ones(3, 3), [0, 0, 1], 2 / 3 * math.log(2)),
        (torch.ones(3, 3), [0, 1, 2], 0.0),
        (torch.eye(3), [0, 1, 2], 0.0),
        (torch.ones(1, 3), [0], 0.0),
        (torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]], [0, 0, 1, 1], 1.2497e-6),
    ],
)
def test_known_answers(features: Tensor, labels: list[int], expected: float) -> None:
    assert float(supervised_contrastive(features, torch.tensor(labels))) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_float32_keeps_a_tiny_loss() -> None:
    loss = supervised_contrastive(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
    assert float(loss) == pytest.approx(1.19e-6, rel=0.01)


def test_equals_the_formula_written_as_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(13, 5, generator=generator), torch.randint(4, (13,), generator=generator)
    for temperature in (0.07, 1.0):
        loss = float(supervised_contrastive(features.double(), labels, temperature))
        assert loss == pytest.approx(by_loops(features, labels, temperature), rel=1e-9)


def test_scaling_one_feature_changes_nothing() -> None:
    features, labels = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    scaled = features * torch.tensor([1, 1, 5, 1, 1, 0.2, 1, 1], dtype=torch.float64)[:, None]
    torch.testing.assert_close(supervised_contrastive(scaled, labels), supervised_contrastive(features, labels))


def test_gradient_is_right_also_for_anchors_without_positives() -> None:
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: supervised_contrastive(x, labels, 0.5), (features,))


@pytest.mark.parametrize("rows", [[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
def test_degenerate_features_give_finite_gradients(rows: list[list[float]]) -> None:
    features = torch.tensor(rows, requires_grad=True)
    loss = supervised_contrastive(features, torch.zeros(len(rows), dtype=torch.int64))
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_no_sample_of_a_huge_similarity_overflows() -> None:
    loss = supervised_contrastive(torch.tensor([[1e18, 0.0], [1e18, 0.0], [-1e18, 0.0]]), torch.tensor([0, 1, 0]), 1e-3)
    assert torch.isfinite(loss)


def test_half_precision_is_computed_in_float32() -> None:
    features, labels = torch.randn(6, 4).bfloat16(), torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = supervised_contrastive(features, labels)
    assert loss.dtype == torch.float32
    assert loss == supervised_contrastive(features.float(), labels)
