"""What is told of a partition: counts and skew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.partition.partition import make_steps, partition, summary
from fedlab.data.partition.skew import skew_figures
from fedlab.data.samples import Dataset

Make = Callable[..., Dataset]


def test_counts_and_names(make_dataset: Make) -> None:
    dataset = make_dataset(np.array([0, 0, 1, 1, 1, 0]), domains=2)
    told = summary(partition(dataset, make_steps([Component(name="domain")]), 0), dataset)
    plain = {"corruption": "", "unseen": False}
    assert (told["classes"], told["domains"]) == (["0", "1"], ["d0", "d1"])
    assert told["clients"] == [
        {"name": "d0", "domain": "d0", "train": [1, 2], "test": [1, 2], "domains": [3, 0], **plain},
        {"name": "d1", "domain": "d1", "train": [2, 1], "test": [2, 1], "domains": [0, 3], **plain},
    ]


def test_a_client_of_several_domains_is_mixed(make_dataset: Make) -> None:
    dataset = make_dataset(np.zeros(12, int), domains=3)
    (client,) = summary(partition(dataset, make_steps([]), 0), dataset, unseen={0})["clients"]
    assert (client["domain"], client["domains"], client["unseen"]) == ("mixed", [4, 4, 4], True)


def test_skew_of_known_partitions() -> None:
    even = skew_figures(np.full((4, 2), 5))
    assert (even["samples"], even["size_gini"], even["label_emd_max"]) == (40, 0.0, 0.0)
    assert even["label_entropy_mean"] == even["label_entropy_global"] == pytest.approx(1.0)
    apart = skew_figures(np.array([[10, 0], [0, 10]]))
    assert (apart["label_entropy_mean"], apart["label_emd_mean"]) == (0.0, 1.0)
    uneven = skew_figures(np.array([[0, 0], [0, 0], [0, 0], [4, 4]]))
    assert uneven["size_gini"] == pytest.approx(0.75)
    assert (uneven["size_min"], uneven["size_median"], uneven["size_max"]) == (0, 0.0, 8)
    assert uneven["label_emd_mean"] == 0.0
    three = skew_figures(np.array([[3, 1], [1, 3]]))
    assert three["label_emd_mean"] == pytest.approx(0.5)
    assert three["label_entropy_min"] == pytest.approx(0.811278, abs=1e-6)
