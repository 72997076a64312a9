from __future__ import annotations

import torch

from fedlab.distill.directions import directions


def test_vectors_become_units_and_zero_stays_zero_without_gradient() -> None:
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]], requires_grad=True)
    found = directions(x)
    torch.testing.assert_close(found, torch.tensor([[[0.6, 0.8]], [[0.0, 0.0]]]))
    found[:, :, 0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[[0.128, -0.096]], [[0.0, 0.0]]]))
