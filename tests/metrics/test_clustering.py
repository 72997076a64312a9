from __future__ import annotations

import numpy as np
import pytest

from fedlab.metrics.clustering import Contingency


def made(table: list[list[int]]) -> Contingency:
    found = Contingency(len(table), len(table[0]))
    for cluster, row in enumerate(table):
        for label, count in enumerate(row):
            found.update(np.full(count, cluster), np.full(count, label))
    return found


def test_clusters_get_the_classes_that_make_most_positions_right() -> None:
    """The first cluster's most frequent class is 0, but together it is better for it to take class 1."""
    found = made([[6, 5], [5, 0], [0, 1]])
    assert found.classes_of().tolist() == [1, 0, -1]
    assert found.compute()["pixel_accuracy"] == pytest.approx(10 / 17)
    # class 0: 5 of 11 + 0; class 1: 5 of 6 + 6 false ones
    assert found.compute()["miou"] == pytest.approx((5 / 11 + 5 / 12) / 2)


def test_numbers_of_clusters_do_not_matter() -> None:
    table = [[9, 0, 1], [0, 8, 0], [2, 0, 7], [1, 1, 0]]
    assert made(table).compute() == made(table[::-1]).compute()


def test_classes_without_a_cluster_are_missed() -> None:
    found = made([[4, 0, 0], [0, 4, 2]])
    assert found.classes_of().tolist() == [0, 1]
    assert found.compute()["miou"] == pytest.approx((1 + 4 / 6 + 0) / 3)


def test_the_assignment_is_made_of_the_sum_of_all_clients() -> None:
    """Each of two clients has one class only, whose cluster a client alone could give any name."""
    one, two = made([[0, 0], [5, 0]]), made([[0, 5], [0, 0]])
    one.merge(two.state())
    assert one.classes_of().tolist() == [1, 0]
    assert one.compute()["pixel_accuracy"] == 1


def test_unlabeled_positions_count_nowhere() -> None:
    found = Contingency(2, 2)
    found.update(np.array([[0, 1], [1, 1]]), np.array([[0, 1], [-1, -1]]))
    assert found.table.tolist() == [[1, 0], [0, 1]]
    assert Contingency(3, 2).compute() == {}
