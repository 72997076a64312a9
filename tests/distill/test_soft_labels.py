from __future__ import annotations

import math

import pytest
import torch

from fedlab.distill.soft_labels import soft_label_kl


def test_equal_logits_have_no_divergence_and_no_gradient() -> None:
    teacher = torch.randn(5, 7)
    student = teacher.clone().requires_grad_()
    loss = soft_label_kl(student, teacher, 20.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-7


def test_a_constant_added_to_the_teachers_logits_changes_nothing() -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    first, second = soft_label_kl(student, teacher, 3.0), soft_label_kl(student, teacher + 11.0, 3.0)
    assert first.item() == pytest.approx(second.item(), abs=1e-6)


def test_the_known_value() -> None:
    """p = (0.731059, 0.268941): ln 2 − H(p) with H = 0.582203."""
    loss = soft_label_kl(torch.zeros(1, 2), torch.tensor([[20.0, 0.0]]), 20.0)
    assert loss.item() == pytest.approx(0.110944, abs=1e-6)
    assert loss.item() == pytest.approx(math.log(2) - 0.582203, abs=1e-6)


def test_the_batch_is_averaged_and_temperature_squared_only_on_request() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    whole = soft_label_kl(student, teacher, 2.0)
    each = [soft_label_kl(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(each).mean())
    torch.testing.assert_close(soft_label_kl(student, teacher, 2.0, squared=True), 4 * whole)


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = torch.randn(2, 3, requires_grad=True)
    soft_label_kl(torch.randn(2, 3, requires_grad=True), teacher, 1.0).backward()
    assert teacher.grad is None
