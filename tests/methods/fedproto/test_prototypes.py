"""How prototypes are computed, averaged and compared, with numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from fedlab.methods.fedproto.prototypes import (
    class_means,
    mean_prototypes,
    nearest_prototype_logits,
    prototype_distance,
)

PROTOTYPES, KNOWN = torch.tensor([[3.0, 2.0], [0.0, 0.0], [0.0, 2.0]]), torch.tensor([True, False, True])


def test_prototypes_are_the_means_of_the_classes_that_occur() -> None:
    features, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 2, 0])
    classes, means = class_means(features, labels)
    assert classes.tolist() == [0, 2]
    assert means.tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_the_server_averages_over_the_clients_that_hold_a_class() -> None:
    one = torch.tensor([0, 2]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    other = torch.tensor([0]), torch.tensor([[4.0, 4.0]])
    means, known = mean_prototypes([one, other], 3)
    assert means.tolist() == PROTOTYPES.tolist()
    assert known.tolist() == KNOWN.tolist()
    assert means.dtype == torch.float32


def test_the_distance_is_the_mean_over_samples_and_features() -> None:
    """(1, 1) is (−2, −1) from its prototype: 5; (2, 0) has none: 0; four numbers in all."""
    z = torch.tensor([[1.0, 1.0], [2.0, 0.0]], requires_grad=True)
    distance = prototype_distance(z, torch.tensor([0, 1]), PROTOTYPES, KNOWN)
    assert float(distance.detach()) == pytest.approx(1.25)
    distance.backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[-1.0, -0.5], [0.0, 0.0]]


def test_the_nearest_prototype_wins_and_a_class_without_one_never_does() -> None:
    logits = nearest_prototype_logits(torch.tensor([[1.0, 1.0], [3.0, 2.0]]), PROTOTYPES, KNOWN)
    assert torch.allclose(logits, torch.tensor([[-5.0, -6.0, -2.0], [0.0, -10.0, -9.0]]), atol=1e-5)
