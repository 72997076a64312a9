"""Histograms of early exits: known answers, merging, and bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlab.metrics.exits import ExitCurve, ExitHistogram

PAPER = range(4, 12)


def right(count: int, wrong: int = 0) -> Tensor:
    return torch.tensor([True] * (count - wrong) + [False] * wrong)


def test_half_at_layer_4_and_half_at_12_is_a_speed_up_of_one_and_a_half() -> None:
    histogram = ExitHistogram(PAPER, 12)
    histogram.update(torch.tensor([0] * 50 + [8] * 50), right(100, wrong=10))
    found = histogram.compute()
    assert (found["mean_exit_layer"], found["speedup"]) == (8, 1.5)
    assert (found["left_at_4"], found["left_at_5"], found["left_at_12"]) == (0.5, 0, 0.5)
    assert histogram.accuracy == 0.9
    assert "mean_macs" not in found


def test_the_speed_up_of_two_clients_is_that_of_their_summed_histogram_and_not_their_mean() -> None:
    states, alone = [], []
    for place, count in ((0, 10), (2, 30)):
        client = ExitHistogram((2, 3), 6)
        client.update(torch.full((count,), place), right(count))
        states.append(client.state())
        alone.append(client.speedup)
    merged = ExitHistogram((2, 3), 6)
    for state in states:
        merged.merge(state)
    assert alone == [3, 1]
    assert merged.speedup == pytest.approx(6 * 40 / (2 * 10 + 6 * 30))  # 1.2, where the mean of the two is 2


def test_costs_count_what_was_spent_against_a_network_without_exits() -> None:
    histogram = ExitHistogram((2, 3), 4)
    histogram.update(torch.tensor([0, 0, 1, 2]), right(4), macs=[10, 25, 60], whole=50)
    found = histogram.compute()
    assert found["mean_macs"] == (10 + 10 + 25 + 60) / 4
    assert found["macs_speedup"] == pytest.approx(200 / 105)
    assert found["speedup"] == pytest.approx(4 * 4 / (2 + 2 + 3 + 4))


def test_large_costs_do_not_overflow() -> None:
    histogram = ExitHistogram((1,), 2)
    state = histogram.state()
    histogram.update(torch.zeros(100_000, dtype=torch.long), right(100_000), macs=[17 * 10**9, 18 * 10**9], whole=10**9)
    assert histogram.compute()["mean_macs"] == 17 * 10**9
    assert state["macs"].sum() == 0  # a state is a copy


def test_merging_gives_the_same_bits_in_any_order() -> None:
    states = []
    for seed, count in enumerate((5, 0, 17)):
        generator = torch.Generator().manual_seed(seed)
        part = ExitHistogram((2, 3), 4)
        part.update(torch.randint(3, (count,), generator=generator), torch.rand(count, generator=generator) < 0.5)
        states.append(part.state())
    found = []
    for order in itertools.permutations(states):
        merged = ExitHistogram((2, 3), 4)
        for state in order:
            merged.merge(state)
        found.append(merged.compute())
    assert all(one == found[0] for one in found)
    assert {values.dtype for values in states[0].values()} == {np.dtype(np.int64)}


def test_no_samples_have_no_values_and_places_that_are_none_are_refused() -> None:
    histogram = ExitHistogram((2, 3), 4)
    histogram.update(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.bool))
    assert histogram.compute() == {}
    for place in (-1, 3):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            histogram.update(torch.tensor([0, place]), right(2))


def test_a_curve_has_accuracy_and_speed_up_of_every_threshold_after_merging() -> None:
    parts = []
    for count in (2, 6):
        curve = ExitCurve((0.5, 0.9), (1,), 2)
        curve.at[0.5].update(torch.zeros(count, dtype=torch.long), right(count, wrong=1))
        curve.at[0.9].update(torch.ones(count, dtype=torch.long), right(count))
        parts.append(curve.state())
    merged = ExitCurve((0.5, 0.9), (1,), 2)
    for state in parts:
        merged.merge(state)
    expected = {"accuracy@0.5": 6 / 8, "speedup@0.5": 2.0, "accuracy@0.9": 1.0, "speedup@0.9": 1.0}
    assert merged.compute() == expected
    assert ExitCurve((), (1,), 2).state() == {}
