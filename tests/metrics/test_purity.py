from __future__ import annotations

import pytest
import torch

from fedlab.metrics.purity import neighbor_purity


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_purity_counts_other_identities_of_equal_color() -> None:
    """Two bands; in the first the token knows the color, in the second it knows nothing."""
    identities = torch.arange(24) // 2
    colors = torch.stack([identities % 2, torch.zeros(24, dtype=torch.int64)], dim=1)
    features = torch.stack([colors[:, 0].float(), torch.zeros(24)], dim=1)[:, :, None].repeat(1, 1, 4)
    purity, chance = neighbor_purity(features, identities, colors)
    assert purity == 1.0
    assert chance == pytest.approx((10 / 22 + 1) / 2)
    blind, _ = neighbor_purity(1 - features[:, :1] * torch.rand(24, 1, 1, generator=generator()), identities, colors)
    assert blind < 1.0
