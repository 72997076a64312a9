from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedlab.distill.contrastive import info_nce, supervised_contrastive


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


# InfoNCE


def cross_view_contrast(q: tuple[Tensor, Tensor], k: tuple[Tensor, Tensor], temperature: float) -> float:
    """2 T [L(q_0, k_1) + L(q_1, k_0)], as SiT and MMC use it."""
    return 2 * temperature * float(info_nce(q[0], k[1], temperature) + info_nce(q[1], k[0], temperature))


def test_info_nce_of_equal_features_is_ln_n() -> None:
    same = torch.ones(64, 5)
    assert float(info_nce(same, same, 0.1)) == pytest.approx(4.158883, abs=1e-5)
    assert cross_view_contrast((same, same), (same, same), 0.2) == pytest.approx(3.327106, abs=1e-5)


def test_info_nce_of_equal_positives_and_orthogonal_negatives() -> None:
    own = torch.eye(64)
    assert float(info_nce(own, own, 0.1)) == pytest.approx(0.0028561, abs=1e-7)
    assert cross_view_contrast((own, own), (own, own), 0.2) == pytest.approx(0.283051, abs=1e-6)


def test_info_nce_of_swapped_keys() -> None:
    own, swapped = torch.eye(2), torch.eye(2).flip(0)
    assert float(info_nce(own, swapped, 0.2)) == pytest.approx(5.006715, abs=1e-5)
    assert cross_view_contrast((own, own), (swapped, swapped), 0.2) == pytest.approx(4.005372, abs=1e-5)


def test_info_nce_finds_the_targets_among_more_keys_than_queries() -> None:
    keys = torch.eye(5)
    queries, targets = keys[[3, 0, 3]], torch.tensor([3, 0, 3])
    expected = math.log(1 + 4 * math.exp(-10))
    assert float(info_nce(queries, keys, 0.1, targets=targets)) == pytest.approx(expected, rel=1e-3)
    assert float(info_nce(keys[:2], keys, 0.1)) == pytest.approx(expected, rel=1e-3)
    soft = torch.nn.functional.one_hot(targets, 5).float()
    torch.testing.assert_close(
        info_nce(queries, keys, 0.1, targets=soft), info_nce(queries, keys, 0.1, targets=targets)
    )


def test_symmetric_info_nce_is_the_mean_of_both_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    both = info_nce(q, k, 0.3, symmetric=True)
    assert float(both) == pytest.approx(float(info_nce(q, k, 0.3) + info_nce(k, q, 0.3)) / 2)
    assert float(info_nce(q, k, 0.3)) != pytest.approx(float(info_nce(k, q, 0.3)))
    torch.testing.assert_close(info_nce(5 * q, k / 3, 0.3), info_nce(q, k, 0.3))


def test_info_nce_gradients_are_right_and_finite_for_vectors_without_direction() -> None:
    q = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    k = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.5, symmetric=True), (q, k))
    zero = torch.zeros(2, 3, requires_grad=True)
    info_nce(zero, torch.ones(2, 3), 0.1).backward()
    assert zero.grad is not None
    assert not zero.grad.any()


def test_info_nce_without_an_own_key_is_refused() -> None:
    for queries, keys, settings in ((3, 2, {}), (2, 3, {"symmetric": True})):
        with pytest.raises(ValueError, match="as many keys"):
            info_nce(torch.ones(queries, 2), torch.ones(keys, 2), 0.1, **settings)
    with pytest.raises(ValueError, match="no targets"):
        info_nce(torch.ones(2, 2), torch.ones(2, 2), 0.1, symmetric=True, targets=torch.tensor([0, 1]))
