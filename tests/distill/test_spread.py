from __future__ import annotations

import math

import pytest
import torch

from fedlab.distill.spread import koleo


def test_known_answers() -> None:
    assert float(koleo(torch.eye(4))) == pytest.approx(-0.5 * math.log(2), rel=1e-6)
    assert float(koleo(torch.tensor([[1.0, 0.0], [-5.0, 0.0]]))) == pytest.approx(-math.log(2), rel=1e-6)
    assert float(koleo(torch.ones(2, 3))) == pytest.approx(8 * math.log(10), rel=1e-6)
    assert float(koleo(torch.ones(1, 3))) == 0


def test_the_neighbor_is_the_nearest_other_sample() -> None:
    """Angles 0, 0.1, and π: the first two are each other's neighbors, and the third's is the second (2 sin ½φ)."""
    angles = torch.tensor([0.0, 0.1, math.pi], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    expected = -(2 * math.log(2 * math.sin(0.05)) + math.log(2 * math.sin((math.pi - 0.1) / 2))) / 3
    assert float(koleo(x)) == pytest.approx(expected, rel=1e-6)


def test_lengths_do_not_matter() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([1, 2, 0.1, 7, 3, 1], dtype=torch.float64)[:, None]
    torch.testing.assert_close(koleo(scales * x), koleo(x))


def test_it_pushes_neighbors_apart_and_equal_samples_do_not_break_it() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.1]], requires_grad=True)
    koleo(x).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert float(x.grad[0, 1]) > 0  # a step against the gradient turns it away from the others
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(koleo, (y,))
