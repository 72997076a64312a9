from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedlab.metrics.attention import (
    AttentionStatistics,
    attention_distance,
    mutual_information,
    patch_attention,
)

GRID, N = (2, 3), 6


def uniform(n: int = 2, heads: int = 3) -> torch.Tensor:
    return torch.full((n, heads, N, N), 1 / N)


def identity(n: int = 2, heads: int = 3) -> torch.Tensor:
    return torch.eye(N).expand(n, heads, N, N)


def test_attention_that_is_everywhere_alike_has_no_mutual_information_and_that_to_oneself_all() -> None:
    assert torch.allclose(mutual_information(uniform()), torch.zeros(2, 3), atol=1e-6)
    assert torch.allclose(mutual_information(identity()), torch.ones(2, 3), atol=1e-6)
    shifted = identity().roll(1, dims=-1)
    assert torch.allclose(mutual_information(shifted), torch.ones(2, 3), atol=1e-6)


def test_all_queries_that_attend_to_one_key_have_no_mutual_information() -> None:
    one = torch.zeros(1, 1, N, N)
    one[..., 2] = 1
    assert mutual_information(one).tolist() == [[0.0]]


def test_mutual_information_of_two_kinds_of_rows() -> None:
    """Half of 4 queries attend to keys 0 and 1, the others to keys 2 and 3: I = ln 2, H(q) = H(k) = ln 4."""
    rows = torch.tensor([[0.5, 0.5, 0, 0]] * 2 + [[0, 0, 0.5, 0.5]] * 2)[None, None]
    assert mutual_information(rows).item() == pytest.approx(0.5)


def test_mutual_information_divides_by_both_entropies() -> None:
    """Queries 0 to 2 attend to key 0, and query 3 to key 1: I = H(k), so that the value is √(H(k) / ln 4)."""
    rows = torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0, 1.0, 0, 0]])[None, None]
    of_keys = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert mutual_information(rows).item() == pytest.approx(math.sqrt(of_keys / math.log(4)))


def test_attention_distance_is_in_patches_of_the_grid() -> None:
    assert torch.equal(attention_distance(identity(), GRID), torch.zeros(2, 3))
    across = torch.zeros(1, 1, N, N)
    across[0, 0, :, 0] = 1  # everybody looks at the first patch
    root = math.sqrt
    assert attention_distance(across, GRID).item() == pytest.approx((0 + 1 + 2 + 1 + root(2) + root(5)) / 6)
    assert attention_distance(across, (3, 2)).item() == pytest.approx((0 + 1 + 1 + root(2) + 2 + root(5)) / 6)


def test_attention_is_among_patches_alone_and_scaled() -> None:
    query, key = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    query[0, 0, 1, 0], key[0, 0, 2, 0] = 2.0, 3.0
    key[0, 0, 0] = 100.0  # the class token's key
    weights = patch_attention(query, key)
    assert weights.shape == (1, 1, 3, 3)
    assert weights[0, 0, 0].tolist() == pytest.approx(torch.tensor([0.0, 3.0, 0.0]).softmax(0).tolist())


def test_sums_of_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    layers = [torch.rand(5, 3, N, N, generator=generator).softmax(-1) for _ in range(2)]
    whole, first, second = (AttentionStatistics(2, 3) for _ in range(3))
    whole.update(layers, GRID)
    first.update([layer[:2] for layer in layers], GRID)
    second.update([layer[2:] for layer in layers], GRID)
    first.merge(second.state())
    for name, value in whole.state().items():
        np.testing.assert_allclose(first.state()[name], value, rtol=1e-12)
    assert first.compute() == pytest.approx(whole.compute())
    by_head = whole.by_head()
    assert by_head.distance[1, 2] == pytest.approx(float(attention_distance(layers[1], GRID)[:, 2].mean()))
    assert by_head.information[0, 1] == pytest.approx(float(mutual_information(layers[0])[:, 1].mean()))


def test_the_spread_is_that_of_the_heads_within_a_layer() -> None:
    statistics = AttentionStatistics(2, 2)
    sums = 4 * np.array([[[1.0, 3.0], [10.0, 10.0]], [[0.2, 0.4], [0.6, 0.8]]])
    statistics.merge({"attention": sums, "attention_images": np.array(4.0)})
    assert statistics.compute() == pytest.approx({"attention_distance": 6, "attention_spread": 0.5, "nmi": 0.5})
    assert AttentionStatistics(1, 1).compute() == {}
