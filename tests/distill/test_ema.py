from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.distill.ema import ema_update


def pair() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), nn.Linear(3, 2)


def test_the_ends_of_the_range_keep_and_copy() -> None:
    teacher, student = pair()
    before = teacher.weight.clone()
    ema_update(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before)
    ema_update(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)
    assert torch.equal(teacher.bias, student.bias)


def test_a_hundred_steps_towards_a_fixed_student() -> None:
    teacher, student = pair()
    nn.init.ones_(teacher.weight)
    nn.init.zeros_(student.weight)
    for _ in range(100):
        ema_update(teacher, student, 0.996)
    assert teacher.weight.tolist()[0] == pytest.approx([0.669783] * 3, abs=1e-5)


def test_the_student_may_have_more_but_not_less_than_the_teacher() -> None:
    teacher, student = pair()
    ema_update(nn.Sequential(teacher), nn.Sequential(student, nn.Linear(2, 2)), 0.5)
    with pytest.raises(KeyError, match=r"1\.weight"):
        ema_update(nn.Sequential(teacher, nn.Linear(2, 2)), nn.Sequential(student), 0.5)


def test_averaging_teachers_is_following_the_averaged_student() -> None:
    """Two clients, one step each from one teacher with one m."""
    first, second = pair()
    teachers = [nn.Linear(3, 2) for _ in range(2)]
    start = teachers[0].weight.clone()
    teachers[1].load_state_dict(teachers[0].state_dict())
    for teacher, student in zip(teachers, (first, second), strict=True):
        ema_update(teacher, student, 0.99)
    averaged = (teachers[0].weight + teachers[1].weight) / 2
    expected = 0.99 * start + 0.01 * (first.weight + second.weight) / 2
    torch.testing.assert_close(averaged, expected, atol=1e-6, rtol=0)
