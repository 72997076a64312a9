from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedlab.blocks.averages import average_late
from fedlab.method import ServerContext


@pytest.mark.parametrize(("late", "expected"), [(0, 4.0), (1, 4.0), (2, 3.5), (4, 2.5)])
def test_the_final_weights_are_the_mean_of_the_last_rounds(
    server: Callable[..., ServerContext], late: int, expected: float
) -> None:
    network, private = nn.Linear(1, 1), dict[str, torch.Tensor]()
    for round in range(1, 5):
        nn.init.constant_(network.weight, float(round))
        average_late(server({"it": network}, private=private, round=round, rounds=4), "it", late)
        assert network.weight.item() == (round if round < 4 else expected)
    assert bool(private) == bool(late)
