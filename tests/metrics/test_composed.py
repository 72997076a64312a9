"""Composed retrieval: known answers, the protocols of the benchmarks, and merging."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlab.metrics.composed import ComposedRetrieval


def ranked(*orders: list[int]) -> Tensor:
    """Similarities that rank images in these orders."""
    similarity = torch.zeros(len(orders), len(orders[0]))
    for row, order in enumerate(orders):
        similarity[row, order] = torch.arange(len(order), 0, -1).float()
    return similarity


# 8: average precision


def test_average_precision_of_two_targets_at_ranks_one_and_three() -> None:
    metric = ComposedRetrieval()
    metric.update(ranked([0, 5, 1, 2, 3, 4, 6, 7]), torch.tensor([[0, 1]]))
    assert metric.compute()["map@5"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)


def test_more_targets_than_the_cutoff_are_no_disadvantage() -> None:
    metric = ComposedRetrieval()
    metric.update(ranked(list(range(20))), torch.arange(10)[None])
    assert metric.compute()["map@5"] == 1.0
    late = ComposedRetrieval()
    late.update(ranked([10, *range(10), *range(11, 20)]), torch.arange(10)[None])
    assert late.compute()["map@5"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4 + 4 / 5) / 5, abs=1e-6)


def test_queries_with_one_target_have_no_map() -> None:
    metric = ComposedRetrieval()
    metric.update(ranked([0, 1, 2]), torch.tensor([[1]]))
    assert not [name for name in metric.compute() if name.startswith("map")]


# 9: CIRR


def test_the_reference_is_removed_before_ranks_are_counted() -> None:
    similarity, targets = ranked([3, 1, 0, 2]), torch.tensor([[1]])
    kept, removed = ComposedRetrieval(), ComposedRetrieval()
    kept.update(similarity, targets)
    removed.update(similarity, targets, removed=torch.tensor([[3]]))
    assert kept.compute()["recall@1"] == 0.0
    assert removed.compute()["recall@1"] == 1.0
    assert removed.compute()["recall@1_chance"] == pytest.approx(1 / 3, abs=1e-6)


def test_within_its_group_a_query_ranks_few_images() -> None:
    metric = ComposedRetrieval()
    group = torch.tensor([[2, 4, 5, 0]])
    metric.update(ranked([1, 3, 5, 0, 4, 2]), torch.tensor([[4]]), removed=torch.tensor([[0]]), group=group)
    found = metric.compute()
    assert (found["group_recall@1"], found["group_recall@2"], found["group_recall@3"]) == (0.0, 1.0, 1.0)
    assert found["recall@1"] == found["recall@1"] == 0.0


# FashionIQ


def test_queries_of_a_kind_rank_images_of_this_kind_and_every_kind_counts_the_same() -> None:
    metric = ComposedRetrieval(kinds=2)
    similarity = ranked([3, 0, 1, 2, 4], [0, 3, 4, 1, 2], [4, 3, 0, 1, 2])
    metric.update(
        similarity, torch.tensor([[0], [3], [3]]), kind=torch.tensor([0, 1, 1]),
        gallery_kind=torch.tensor([0, 0, 0, 1, 1]),
    )  # fmt: skip
    found = metric.compute(("dress", "shirt"))
    assert found["recall@1_dress"] == 1.0
    assert found["recall@1_shirt"] == 0.5
    assert found["recall@1"] == 0.75


# sums


def test_ranks_that_cannot_be_missed_are_not_told() -> None:
    metric = ComposedRetrieval(ranks=(1, 2, 3))
    metric.update(ranked([0, 1, 2]), torch.tensor([[1]]))
    assert {"recall@1", "recall@2"} == {name for name in metric.compute() if "chance" not in name}


def test_queries_without_a_target_are_counted_and_skipped() -> None:
    metric = ComposedRetrieval()
    metric.update(ranked([0, 1], [1, 0]), torch.tensor([[-1, -1], [1, -1]]))
    assert metric.skipped == 1
    assert metric.compute()["recall@1"] == 1.0
    gone = ComposedRetrieval()
    gone.update(ranked([0, 1]), torch.tensor([[1]]), removed=torch.tensor([[1]]))
    assert gone.compute() == {}
    assert gone.skipped == 1


def test_equal_similarities_keep_the_gallerys_order() -> None:
    metric = ComposedRetrieval()
    metric.update(torch.zeros(2, 3), torch.tensor([[0], [2]]))
    assert metric.compute()["recall@1"] == 0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_parts_merge_to_the_bits_of_the_whole_and_agree_with_a_plain_count(seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(7, 9, generator=generator)
    targets = torch.randint(-1, 9, (7, 3), generator=generator)
    targets[:, 0] = targets[:, 0].clamp(min=0)
    whole, merged = ComposedRetrieval((1, 3), cutoffs=(4,)), ComposedRetrieval((1, 3), cutoffs=(4,))
    whole.update(similarity, targets)
    for part in (slice(cut, 7), slice(0, cut)):
        piece = ComposedRetrieval((1, 3), cutoffs=(4,))
        piece.update(similarity[part], targets[part])
        merged.merge(piece.state())
    assert merged.compute() == whole.compute()
    hits, precisions = {1: 0.0, 3: 0.0}, 0.0
    for row in range(7):
        wanted = {int(number) for number in targets[row] if number >= 0}
        order = sorted(range(9), key=lambda number: -float(similarity[row, number]))
        for k in hits:
            hits[k] += bool(wanted & set(order[:k])) / 7
        found = 0
        total = 0.0
        for rank, number in enumerate(order[:4], start=1):
            found += number in wanted
            total += found / rank * (number in wanted)
        precisions += total / min(len(wanted), 4) / 7
    assert whole.compute()["recall@1"] == pytest.approx(hits[1])
    assert whole.compute()["recall@3"] == pytest.approx(hits[3])
    assert whole.compute().get("map@4", precisions) == pytest.approx(precisions, abs=1e-5)
