"""Clipping of parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.method import Optimizer


def test_groups_of_one_name_are_clipped_together() -> None:
    one, two, other = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    common = {"clip_norm": 1.0, "clip_with": "backbone"}
    groups = [{"params": [one], **common}, {"params": [other], "clip_norm": 1.0}, {"params": [two], **common}]
    optimizer = Optimizer(torch.optim.SGD(groups, lr=1.0))
    for p, value in ((one, 3.0), (two, 4.0), (other, 5.0)):
        p.grad = torch.tensor([value])
    optimizer.clip_gradients()
    assert [float(p.grad) for p in (one, two, other)] == pytest.approx([0.6, 0.8, 1.0], abs=1e-5)  # type: ignore[arg-type]  # they have gradients
