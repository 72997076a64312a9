from __future__ import annotations

import math

import pytest
import torch

from fedlab.distill.collapse import TargetFigures, feature_deviation, features_collapsed, target_figures


def test_distinct_targets_tell_all_and_are_no_collapse() -> None:
    figures = target_figures(torch.eye(8), torch.zeros(8), 0.01)
    assert figures.target_entropy == pytest.approx(0, abs=1e-6)
    assert figures.marginal_entropy == pytest.approx(1, abs=1e-6)
    assert not figures.collapsed


@pytest.mark.parametrize("way", ["uniform", "single"])
def test_either_way_of_collapsing_raises_the_alarm(way: str) -> None:
    """A constant teacher whose center has converged to it has uniform targets; a center of 0 leaves one prototype."""
    logits = torch.tensor([0.9, 0.1, -0.3, 0.2]).expand(20, 4)
    figures = target_figures(logits, logits[0] if way == "uniform" else torch.zeros(4), 0.04)
    assert figures.target_entropy == pytest.approx(1.0 if way == "uniform" else 0.0, abs=1e-6)
    assert figures.collapsed


def test_a_center_outside_the_cosines_and_figures_that_are_not_finite_raise_it_too() -> None:
    figures = target_figures(torch.eye(4), torch.full((4,), 1.1), 0.01)
    assert figures.center_norm == pytest.approx(1.1)
    assert figures.collapsed
    assert TargetFigures(math.nan, 1.0, 0.0).collapsed
    assert not TargetFigures(0.5, 0.52, 1.0).collapsed
    assert TargetFigures(0.5, 0.505, 0.0).collapsed


def test_entropies_are_shares_of_ln_k() -> None:
    """Two targets (½, ½, 0, 0) and (0, 0, ½, ½): each ln 2 and together ln 4."""
    logits = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])
    figures = target_figures(logits, torch.zeros(4), 0.01)
    assert (figures.target_entropy, figures.marginal_entropy) == pytest.approx((0.5, 1.0))


def test_deviation_is_one_for_even_directions_and_zero_for_a_single_one() -> None:
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_deviation(x) == pytest.approx(1, abs=0.02)
    assert feature_deviation(x * torch.rand(4000, 1)) == pytest.approx(feature_deviation(x), rel=1e-6)
    assert feature_deviation(torch.arange(1.0, 5.0)[:, None] * torch.ones(3)) == pytest.approx(0, abs=1e-7)
    assert feature_deviation(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.5 * math.sqrt(2))


def test_features_may_lose_three_quarters_of_their_deviation() -> None:
    assert not features_collapsed(0.26, 1.0)
    assert features_collapsed(0.24, 1.0)
    assert features_collapsed(math.nan, 1.0)
