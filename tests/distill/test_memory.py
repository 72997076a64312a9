from __future__ import annotations

import pytest
import torch

from fedlab.distill.memory import MemoryBank


def test_the_memory_moves_by_a_tenth_and_takes_first_sights_whole() -> None:
    bank = MemoryBank.empty(torch.tensor([0, 0, 1]), 3, 4)
    bank.known[0] = True
    one = torch.ones(2, 3, 4, requires_grad=True)
    bank.update(torch.tensor([0, 2]), one, 0.1)
    assert bank.features[0].unique().tolist() == pytest.approx([0.1])
    assert bank.features[2].unique().tolist() == [1.0]
    bank.update(torch.tensor([0]), one[:1], 0.1)
    assert bank.features[0].unique().tolist() == pytest.approx([0.19])
    assert not bank.features.requires_grad
    assert bank.known.tolist() == [True, False, True]


def test_an_image_that_occurs_twice_in_a_batch_counts_twice() -> None:
    bank = MemoryBank.empty(torch.zeros(4, dtype=torch.int64), 1, 1)
    bank.update(torch.tensor([3, 1, 3]), torch.tensor([[[1.0]], [[5.0]], [[0.0]]]), 0.1)
    assert bank.features.flatten().tolist() == pytest.approx([0.0, 5.0, 0.0, 0.9])
