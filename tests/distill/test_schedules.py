from __future__ import annotations

import pytest

from fedlab.distill.schedules import cosine, linear, warmup_cosine


def test_the_papers_schedules_over_100_epochs_of_10_steps() -> None:
    lr = [warmup_cosine(step, 1000, 2.5e-4, 1e-6, 100) for step in range(1000)]
    assert lr[0] == 0
    assert lr[99] == lr[100] == 2.5e-4
    assert lr[999] == pytest.approx(1.0008e-6, rel=1e-4)
    assert cosine(0, 1000, 0.04, 0.4) == pytest.approx(0.04)
    assert cosine(500, 1000, 0.04, 0.4) == pytest.approx(0.22)
    assert [linear(epoch, 30, 0.04, 0.07) for epoch in (0, 29, 30, 99)] == pytest.approx([0.04, 0.07, 0.07, 0.07])


def test_the_teachers_momentum_rises_to_one_without_reaching_it() -> None:
    m = [cosine(step, 1000, 0.996, 1.0) for step in range(1000)]
    assert m[0] == pytest.approx(0.996)
    assert m[500] == pytest.approx(0.998)
    assert m == sorted(m)
    assert m[999] < 1


def test_short_ramps_have_no_division_by_zero() -> None:
    assert warmup_cosine(0, 10, 1.0, 0.0, 1) == 0
    assert warmup_cosine(0, 10, 1.0, 0.0, 0) == 1
    assert warmup_cosine(9, 10, 1.0, 0.0, 10) == 1
    assert linear(0, 1, 0.04, 0.07) == 0.07
