"""Cost model and chunks: known answers, bounds, and the idle time a plan leaves."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab.engine.scheduling import CostModel, plan_chunks

UNITS = st.lists(st.floats(0.0, 50.0), min_size=0, max_size=200)


def finish(chunks: Sequence[Sequence[int]], units: Sequence[float], workers: int) -> list[float]:
    """Seconds at which each worker is done, when free workers take the chunks in order and a unit takes a second."""
    free = [0.0] * workers
    for chunk in chunks:
        heapq.heapreplace(free, free[0] + sum(units[place] for place in chunk))
    return sorted(free)


@given(units=UNITS, workers=st.integers(1, 8), known=st.booleans(), overhead=st.floats(0.001, 1.0))
def test_every_message_is_in_one_chunk_and_long_ones_come_first(
    units: list[float], workers: int, known: bool, overhead: float
) -> None:
    chunks = plan_chunks(units, sum(units) if known else None, workers, overhead)
    order = [place for chunk in chunks for place in chunk]
    assert sorted(order) == list(range(len(units)))
    assert [units[place] for place in order] == sorted(units, reverse=True)
    assert all(chunks)


def test_equal_work_of_unknown_cost_stays_in_order_in_equal_chunks() -> None:
    chunks = plan_chunks([1.0] * 50, None, 2, 0.01)
    assert [place for chunk in chunks for place in chunk] == list(range(50))
    assert {len(chunk) for chunk in chunks[:-1]} == {6}


def test_chunks_shrink_to_a_thirty_second_of_a_share() -> None:
    sizes = [len(chunk) for chunk in plan_chunks([1.0] * 128, 12.8, 2, 0.001)]
    assert sizes[0] == 32  # half of a worker's share
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes[:-1]) == 2
    assert len(sizes) <= 18


def test_cheap_clients_go_in_chunks_that_are_worth_a_call() -> None:
    # 1,000 echoes of 2 ms: a chunk costs 2 ms where workers keep their sums, and ten more where they do not
    assert min(len(chunk) for chunk in plan_chunks([1.0] * 1000, 2.0, 2, 0.002)[:-1]) * 2e-3 >= 0.016
    assert len(plan_chunks([1.0] * 1000, 2.0, 2, 0.002)) <= 18
    assert len(plan_chunks([1.0] * 50, 0.2, 2, 0.01)) <= 6
    assert len(plan_chunks([1.0] * 50, None, 2, 0.01)) == 9


@pytest.mark.parametrize("overhead", [0.002, 0.01])
def test_work_that_is_hardly_worth_a_call_is_one_even_chunk_for_each_worker(overhead: float) -> None:
    chunks = plan_chunks([1.0] * 50, 0.1, 2, overhead)
    assert [len(chunk) for chunk in chunks] == [25, 25]
    assert [len(chunk) for chunk in plan_chunks([1.0] * 51, 0.1, 2, overhead)] == [25, 26]
    uneven = [5.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert plan_chunks(uneven, 0.1, 2, overhead) == [[0], [1, 2, 3, 4, 5]]
    assert len(plan_chunks([1.0], 0.1, 2, 0.1)) == 1


def test_a_chunk_is_no_longer_than_a_dying_worker_may_cost() -> None:
    chunks = plan_chunks([1.0] * 10, 10 * 15.0, 2, 0.01)  # fifteen seconds each
    assert max(map(len, chunks)) == 1


@given(units=st.lists(st.floats(0.1, 50.0), min_size=1, max_size=200), workers=st.integers(1, 8))
def test_workers_finish_together_but_for_a_sixteenth_or_the_longest_client(units: list[float], workers: int) -> None:
    total = sum(units)
    done = finish(plan_chunks(units, total, workers, 1e-6), units, workers)
    share = total / workers
    # Graham's bound for list scheduling: the last to finish began before the share was over
    assert done[-1] <= share + max(share / 2, max(units)) + 1e-6


def test_one_long_client_among_many_goes_first_and_alone() -> None:
    units = [1.0] * 30 + [20.0]
    chunks = plan_chunks(units, sum(units), 2, 0.01)
    assert chunks[0] == [30]
    assert finish(chunks, units, 2)[-1] <= 27
    in_order = [list(range(start, min(start + 4, 31))) for start in range(0, 31, 4)]
    assert finish(in_order, units, 2)[-1] >= 33


def test_rates_are_learnt_by_kind_and_follow_a_change() -> None:
    costs = CostModel()
    assert costs.seconds("train", 10) is None
    costs.learn("train", 0, 5.0)  # nothing was asked of these clients
    assert costs.seconds("train", 10) is None
    costs.learn("train", 4, 2.0)
    assert costs.seconds("train", 10) == 5.0
    assert costs.seconds("evaluate", 10) is None
    for _ in range(20):
        costs.learn("train", 4, 8.0)
    assert costs.seconds("train", 10) == pytest.approx(20.0, rel=0.01)
