from __future__ import annotations

import numpy as np
import pytest

from fedlab.probes.classifiers import linear_probe, mean_average_precision, nearest_neighbors


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return np.eye(4)[labels] * [5, 1, 0.2, 1] + 0.03 * rng.standard_normal((n, 4)), labels


def test_separable_clusters_are_solved_whatever_the_scale_of_a_feature() -> None:
    sides = (*clusters(30, 0), *clusters(12, 1))
    assert linear_probe(*sides) == 1.0
    assert nearest_neighbors(*sides) == 1.0


def test_shuffled_labels_leave_chance() -> None:
    (train, labels), (test, truth) = clusters(300, 0), clusters(300, 1)
    shuffled = np.random.default_rng(2).permutation(labels)
    assert linear_probe(train, shuffled, test, truth) < 0.6
    assert nearest_neighbors(train, shuffled, test, truth) < 0.6


def test_a_constant_feature_and_a_single_class_do_no_harm() -> None:
    (train, labels), (test, truth) = clusters(30, 0), clusters(12, 1)
    train[:, 3] = test[:, 3] = 7.0
    assert linear_probe(train, labels, test, truth) == 1.0
    assert linear_probe(train, np.zeros(30, int), test, truth) == pytest.approx(1 / 3)
    assert nearest_neighbors(train[:3], labels[:3], test, truth) >= 1 / 3  # fewer than five


def test_several_labels_are_scored_by_mean_average_precision() -> None:
    (train, labels), (test, truth) = clusters(60, 0), clusters(30, 1)
    tags, expected = (np.eye(3, dtype=np.uint8)[part] for part in (labels, truth))
    tags[:, 0] |= tags[:, 1]
    expected[:, 0] |= expected[:, 1]
    assert linear_probe(train, tags, test, expected) == pytest.approx(1.0)
    assert nearest_neighbors(train, tags, test, expected) == pytest.approx(1.0)
    lacking = np.concatenate([tags, np.zeros((60, 1), np.uint8)], 1)  # a class the probe set does not know
    wider = np.concatenate([expected, np.eye(30, 1, dtype=np.uint8)], 1)
    assert linear_probe(train, lacking, test, wider) < 1


def test_average_precision_known_answer() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    assert mean_average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)  # the second class never occurs
    assert mean_average_precision(scores, np.zeros((3, 2))) == 0


def test_every_class_counts_alike_and_is_ranked_by_itself() -> None:
    """The second class is ranked perfectly, though all of its scores are below those of the first."""
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    labels = np.array([[0, 0], [0, 0], [1, 1]])
    assert mean_average_precision(scores, labels) == pytest.approx((1 / 3 + 1) / 2)
