"""Distances between real and generated images."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from fedlab.metrics.generation import exact_matches, f1, frechet_distance, kernel_distance


def features(seed: int, n: int = 40) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_a_set_is_at_distance_zero_from_itself() -> None:
    x = features(0)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-8)
    assert frechet_distance(x, features(1)) > 0.05


def test_a_shift_adds_its_square_and_a_scale_what_it_does_to_the_spread() -> None:
    x = features(0)
    assert frechet_distance(x, x + 3) == pytest.approx(5 * 9.0, rel=1e-6)
    variance = float(x.var(dim=0).sum())
    expected = (2 - 1) ** 2 * variance + float(x.mean(0).square().sum())
    assert frechet_distance(x, 2 * x) == pytest.approx(expected, rel=1e-5)


def test_kid_is_the_unbiased_mmd_with_the_cubic_kernel() -> None:
    x, y = features(0, 6).double(), features(1, 9).double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 5 + 1) ** 3

    z, m = y[:6], 6
    same = sum((kernel(a, a).sum() - kernel(a, a).diagonal().sum()) / (m * (m - 1)) for a in (x, z))
    expected = float(same - 2 * kernel(x, z).mean())
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_neither_needs_libraries_that_must_not_be_installed() -> None:
    frechet_distance(features(0), features(1))
    kernel_distance(features(0), features(1))
    assert not {"torchvision", "torch_fidelity"} & set(sys.modules)


def test_words_found_are_compared_with_those_asked_for() -> None:
    asked = torch.tensor([[True, True, False], [True, False, False], [False, False, True]])
    found = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    assert exact_matches(found, asked) == pytest.approx(1 / 3)
    assert f1(found, asked) == pytest.approx(2 * 3 / (4 + 4))
    assert f1(torch.zeros_like(asked), torch.zeros_like(asked)) == 0.0
