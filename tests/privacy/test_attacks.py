from __future__ import annotations

import pytest
import torch

from fedlab.metrics import client_distance
from fedlab.privacy.attacks import membership_inference, memorization


def test_an_attack_on_separable_losses_wins_and_on_equal_ones_learns_nothing() -> None:
    won = membership_inference(torch.linspace(0, 1, 50), torch.linspace(2, 3, 50))
    assert won == {"auroc": 1.0, "tpr_at_1%": 1.0, "tpr_at_0.1%": 1.0}
    same = torch.linspace(0, 1, 50)
    assert membership_inference(same, same)["auroc"] == pytest.approx(0.5)
    assert membership_inference(torch.ones(9), torch.ones(9)) == {"auroc": 0.5, "tpr_at_1%": 0.0, "tpr_at_0.1%": 0.0}
    assert membership_inference(torch.ones(9) * 2, torch.ones(9))["auroc"] == 0.0


def test_rates_count_wrong_accusations() -> None:
    """1,000 others, one of which has a loss below half of the members, eight more below three quarters of them."""
    members = torch.arange(100.0)
    others = torch.cat([torch.tensor([49.5]), torch.full((8,), 74.5), torch.full((991,), 1000.0)])
    found = membership_inference(members, others)
    assert found["tpr_at_0.1%"] == pytest.approx(0.75)  # one in a thousand is allowed
    assert found["tpr_at_1%"] == pytest.approx(1.0)  # and so are nine
    strict = membership_inference(members, torch.cat([others, others[:1]]))
    assert strict["tpr_at_0.1%"] == pytest.approx(0.5)


def test_auroc_equals_torchmetrics() -> None:
    from torchmetrics.classification import BinaryAUROC

    members, others = torch.randn(80).exp(), torch.randn(120).exp() * 1.5
    expected = BinaryAUROC()(torch.cat([1 / (1 + members), 1 / (1 + others)]), torch.arange(200) < 80)
    assert membership_inference(members, others)["auroc"] == pytest.approx(float(expected), abs=1e-6)


def test_an_attack_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="expected some of each"):
        membership_inference(torch.ones(0), torch.ones(3))


def test_copies_are_memorized_and_strangers_are_not() -> None:
    private = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    held_out = torch.tensor([[0.0, 4.0], [30.0, 0.0]])
    virtual = torch.tensor([[10.0, 0.0], [0.0, 3.0], [0.0, 2.0], [20.0, 0.0]])
    assert memorization(virtual, private, held_out).tolist() == [0.0, 3.0, 1.0, 1.0]
    assert memorization(virtual, virtual, virtual).tolist() == [1.0] * 4
    assert memorization(held_out, private, held_out).tolist() == [float("inf")] * 2


def test_a_copy_is_found_exactly_among_many_images() -> None:
    images = torch.rand(200, 3, 28, 28) + 100
    ratios = memorization(images[:20], images[:100], images[100:])
    assert not ratios.any()
    assert torch.all(memorization(images[100:120], images[:100], images[100:]).isinf())


def test_memorization_compares_sets_of_one_size() -> None:
    with pytest.raises(ValueError, match="as many of each"):
        memorization(torch.ones(1, 2), torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="as many of each"):
        memorization(torch.ones(1, 2), torch.ones(0, 2), torch.ones(0, 2))


def test_client_distance_known_answers() -> None:
    pair = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    features = [pair, pair + torch.tensor([0.0, 3.0]), pair + torch.tensor([0.0, 6.0])]
    labels = [torch.zeros(2, dtype=torch.int64)] * 3
    assert client_distance(features, labels) == {0: pytest.approx(4.0)}  # distances 3, 6, 3 over a spread of 1
    assert client_distance([5 * x for x in features], labels) == {0: pytest.approx(4.0)}
    assert client_distance([pair, pair], labels[:2]) == {0: 0.0}
    assert client_distance([pair[:1], pair[1:]], [torch.zeros(1, dtype=torch.int64)] * 2) == {0: float("inf")}


def test_client_distance_is_taken_class_by_class_over_those_who_hold_it() -> None:
    pair = torch.tensor([[-1.0], [1.0]])
    features = [torch.cat([pair, pair + 50]), torch.cat([pair + 2, pair])]
    labels = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 2, 2])]
    assert client_distance(features, labels) == {0: pytest.approx(2.0)}
    assert client_distance(features[:1], labels[:1]) == {}
