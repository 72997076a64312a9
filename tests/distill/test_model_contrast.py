from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedlab.distill.model_contrast import model_contrastive

E1, E2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def one(z: Tensor, z_global: Tensor, *z_previous: Tensor, temperature: float = 0.5) -> Tensor:
    negatives = torch.stack(z_previous, dim=1) if z_previous else z.new_empty(len(z), 0, z.shape[1])
    return model_contrastive(z, z_global, negatives, temperature)


@pytest.mark.parametrize(
    ("z", "z_global", "z_previous", "expected"),
    [
        (E1, E1, E1, math.log(2)),
        (E1, E1, E2, 0.126928),
        (E1, E1, -E1, 0.018150),
        (E1, E2, E1, 2.126928),
    ],
)
def test_known_answers(z: Tensor, z_global: Tensor, z_previous: Tensor, expected: float) -> None:
    assert float(one(z, z_global, z_previous)) == pytest.approx(expected, abs=1e-6)
    assert float(one(3 * z, 0.1 * z_global, 7 * z_previous)) == pytest.approx(expected, abs=1e-6)


def test_without_earlier_models_it_is_exactly_zero_and_pulls_nowhere() -> None:
    z = torch.randn(5, 3, requires_grad=True)
    loss = one(z, torch.randn(5, 3))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert z.grad is not None
    assert not z.grad.any()


def test_equals_the_formula_written_as_loops_for_several_earlier_models() -> None:
    generator = torch.Generator().manual_seed(0)
    z, z_global = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    previous = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    for temperature in (0.1, 0.5, 2.0):
        total = 0.0
        for i in range(6):
            cosine = [float(z[i] @ other / z[i].norm() / other.norm()) for other in (z_global[i], *previous[i])]
            exponentials = [math.exp(c / temperature) for c in cosine]
            total -= math.log(exponentials[0] / sum(exponentials))
        assert float(model_contrastive(z, z_global, previous, temperature)) == pytest.approx(total / 6, rel=1e-12)


def test_no_gradient_reaches_the_other_models() -> None:
    z, z_global, previous = (torch.randn(*shape, requires_grad=True) for shape in ((4, 3), (4, 3), (4, 2, 3)))
    model_contrastive(z, z_global, previous).backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert z_global.grad is None
    assert previous.grad is None


def test_gradient_is_right() -> None:
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    z_global, previous = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: model_contrastive(x, z_global, previous), (z,))


def test_zero_representations_give_a_finite_loss_and_gradient() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = one(z, torch.zeros(2, 2), E1.repeat(2, 1))
    loss.backward()
    assert torch.isfinite(loss)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_half_precision_is_computed_in_float32() -> None:
    z, z_global, previous = (torch.randn(*shape).bfloat16() for shape in ((4, 3), (4, 3), (4, 1, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model_contrastive(z, z_global, previous)
    assert loss.dtype == torch.float32
    assert loss == model_contrastive(z.float(), z_global.float(), previous.float())
