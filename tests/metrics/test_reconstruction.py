from __future__ import annotations

import pytest
import torch

from fedlab.metrics.reconstruction import MaskedError


def test_only_corrupted_values_count_and_parts_add_up() -> None:
    clean = torch.tensor([[1.0, -2.0, 3.0], [-2.0, 0.0, 4.0]])
    restored = clean + torch.tensor([[0.5, 9.0, -1.5], [9.0, 9.0, 1.0]])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    whole, first, second = MaskedError(), MaskedError(), MaskedError()
    whole.update(restored, clean, mask)
    first.update(restored[:1], clean[:1], mask[:1])
    second.update(restored[1:], clean[1:], mask[1:])
    first.merge(second.state())
    assert first.compute() == whole.compute()
    assert whole.compute() == {
        "masked_l1": pytest.approx(1.0),  # (0.5 + 1.5 + 1) / 3
        "mean_abs": pytest.approx(2.0),  # 12 / 6
        "masked_l1_ratio": pytest.approx(0.5),
    }


def test_nothing_is_told_without_a_corrupted_value() -> None:
    metric = MaskedError()
    assert metric.compute() == {}
    metric.update(torch.ones(2), torch.ones(2), torch.zeros(2, dtype=torch.bool))
    assert metric.compute() == {}
