from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedlab.distill.mmd import rbf_mmd


def by_loops(source: Tensor, target: Tensor, bandwidth: float | None = None) -> tuple[float, float]:
    both = [row.double() for row in (*source, *target)]
    n, m = len(source), len(both)
    distance = [[float((a - b).square().sum()) for b in both] for a in both]
    if bandwidth is None:
        bandwidth = sum(map(sum, distance)) / (m * m - m) / 4
    kernel = [[sum(math.exp(-d / (bandwidth * 2**k)) for k in range(5)) for d in row] for row in distance]

    def mean(rows: range, columns: range) -> float:
        return sum(kernel[i][j] for i in rows for j in columns) / (len(rows) * len(columns))

    xs, ys = range(n), range(n, m)
    return mean(xs, xs) + mean(ys, ys) - mean(xs, ys) - mean(ys, xs), bandwidth


def test_known_answers() -> None:
    points = torch.randn(6, 3)
    assert float(rbf_mmd(points, points)) == pytest.approx(0, abs=1e-6)
    assert float(rbf_mmd(torch.zeros(2, 1), torch.ones(2, 1))) == pytest.approx(7.129896, rel=1e-6)


def test_equals_the_formula_written_as_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(7, 4, generator=generator) + 3, torch.randn(5, 4, generator=generator)
    assert float(rbf_mmd(source.double(), target.double())) == pytest.approx(by_loops(source, target)[0], rel=1e-9)


def test_the_bandwidth_receives_no_gradient() -> None:
    source, target = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    _, bandwidth = by_loops(source, target)
    moving = source.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rbf_mmd(moving, target), moving)
    step = torch.zeros_like(source)
    step[1, 0] = 1e-5
    up, down = (by_loops(source + sign * step, target, bandwidth)[0] for sign in (1, -1))
    assert float(gradient[1, 0]) == pytest.approx((up - down) / 2e-5, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3)])
def test_equal_samples_give_zero_and_finite_gradients(n: int, m: int) -> None:
    source = torch.ones(n, 3, requires_grad=True)
    loss = rbf_mmd(source, torch.ones(m, 3))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert source.grad is not None
    assert torch.isfinite(source.grad).all()


def test_a_common_offset_costs_no_precision() -> None:
    source, target = torch.randn(8, 4), torch.randn(8, 4)
    assert float(rbf_mmd(source + 1000, target + 1000)) == pytest.approx(float(rbf_mmd(source, target)), rel=1e-3)


def test_autocast_changes_nothing() -> None:
    source, target = torch.randn(8, 4), torch.randn(8, 4)
    outside = rbf_mmd(source, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rbf_mmd(source, target) == outside
        halves = rbf_mmd(source.bfloat16(), target.bfloat16())
    assert halves.dtype == torch.float32
    assert float(halves) == pytest.approx(float(outside), abs=0.02)
