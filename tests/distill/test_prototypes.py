from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedlab.distill.prototypes import Center, Prototypes, entropy, prototype_cross_entropy, sharpened


def test_logits_are_cosines_with_unit_prototypes() -> None:
    torch.manual_seed(0)
    head = Prototypes(5, 7)
    z = F.normalize(torch.randn(4, 5), dim=1)
    torch.testing.assert_close(head.directions().norm(dim=1), torch.ones(7))
    expected = F.cosine_similarity(z[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(z), expected)
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(5, 7, bias=False))
    with torch.no_grad():
        weighted.parametrizations.weight.original0.fill_(1)
        weighted.parametrizations.weight.original1.copy_(head.weight)
    torch.testing.assert_close(head(z), weighted(z))
    loud = Prototypes(5, 7, gain=4.0)
    loud.load_state_dict(head.state_dict())
    torch.testing.assert_close(loud(z), 4 * expected)


def test_frozen_prototypes_get_no_gradient_but_pass_one_on() -> None:
    head, z = Prototypes(3, 4), torch.randn(2, 3, requires_grad=True)
    head(z, frozen=True).square().sum().backward()
    assert head.weight.grad is None
    assert z.grad is not None


def test_the_center_is_a_running_mean_of_the_teachers_logits() -> None:
    mu, center = torch.tensor([1.0, -2.0, 0.5]), Center(3)
    assert not list(center.parameters())
    for expected in (0.1, 0.19):
        center.update(mu)
        torch.testing.assert_close(center.value, expected * mu)


def test_equal_student_logits_give_ln_k_whatever_the_teacher_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, expected in ((8192, 9.010913), (1024, 6.931472)):
        targets = sharpened(torch.randn(3, size, generator=generator), torch.zeros(size), 0.04)
        loss = prototype_cross_entropy(targets, torch.full((3, size), 0.7), 0.1)
        assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_a_perfect_student_is_left_with_the_entropy_of_the_target() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    targets = sharpened(logits, torch.zeros(2), 0.1)
    assert float(prototype_cross_entropy(targets, logits, 0.1)) == pytest.approx(4.9938e-4, rel=1e-4)
    assert float(entropy(targets)) == pytest.approx(4.9938e-4, rel=1e-4)


def test_targets_are_centered_before_they_are_sharpened_and_carry_no_gradient() -> None:
    logits = torch.tensor([[0.3, 0.3]], requires_grad=True)
    targets = sharpened(logits, torch.tensor([0.0, 0.1]), 0.05)
    assert targets.tolist()[0] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    assert not targets.requires_grad


def test_entropy_of_certain_and_uniform_targets() -> None:
    assert entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == pytest.approx([0, math.log(2)])
