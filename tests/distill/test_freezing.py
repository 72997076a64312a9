from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.distill.freezing import frozen
from fedlab.distill.precision import full_precision


def test_a_frozen_module_passes_gradients_and_keeps_none() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    module[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in module.parameters()]
    x = torch.randn(2, 3, requires_grad=True)
    with frozen(module) as same:
        assert same is module
        module(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == before


def test_freezing_is_undone_after_an_error() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), frozen(module):
        raise RuntimeError
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_numbers_get_float32_at_least_and_no_autocast(given: torch.dtype, expected: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.ones(2, 2, dtype=given)) as (x,):
        assert x.dtype == expected
        assert (x @ x).dtype == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
