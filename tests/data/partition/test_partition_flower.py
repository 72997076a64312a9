"""Our label-skew steps against flwr-datasets' own, and the reasons for having our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.partition.partition import class_counts, make_steps, partition
from fedlab.data.partition.skew import skew_figures
from fedlab.data.samples import Dataset

Make = Callable[..., Dataset]
LABELS = np.arange(2000) % 10


def theirs(partitioner: Any, labels: np.ndarray) -> list[np.ndarray]:
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"label": labels, "index": np.arange(len(labels))})
    parts = [partitioner.load_partition(part) for part in range(partitioner.num_partitions)]
    return [np.asarray(part["index"][:], dtype=np.int64) for part in parts]


def table(parts: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    return np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def ours(make_dataset: Make, labels: np.ndarray, seed: int, **step: Any) -> np.ndarray:
    dataset = make_dataset(labels)
    return class_counts(
        partition(dataset, make_steps([Component(**step)]), seed).train, labels, dataset.train.num_classes
    )


def figures(tables: list[np.ndarray], name: str) -> float:
    return float(np.mean([skew_figures(counts)[name] for counts in tables]))


@pytest.mark.parametrize("alpha", [0.1, 5.0])
def test_dirichlet_is_of_the_same_distribution(make_dataset: Make, alpha: float) -> None:
    from flwr_datasets.partitioner import DirichletPartitioner

    def draw(seed: int) -> np.ndarray:
        made = DirichletPartitioner(5, "label", alpha, min_partition_size=1, self_balancing=False, seed=seed)
        return table(theirs(made, LABELS), LABELS)

    a = [draw(seed) for seed in range(30)]
    b = [ours(make_dataset, LABELS, seed, name="dirichlet", clients=5, alpha=alpha) for seed in range(30)]
    for name, tolerance in {"label_emd_mean": 0.06, "label_entropy_mean": 0.12, "size_gini": 0.06}.items():
        assert figures(a, name) == pytest.approx(figures(b, name), abs=tolerance)
    # the distribution of single cells, not only their averages
    quantiles = [np.quantile(np.concatenate(tables).ravel() / 200, (0.5, 0.75, 0.9, 0.97)) for tables in (a, b)]
    assert quantiles[0] == pytest.approx(quantiles[1], abs=0.06)


def test_pathological_gives_every_client_as_many_classes(make_dataset: Make) -> None:
    from flwr_datasets.partitioner import PathologicalPartitioner

    made = PathologicalPartitioner(20, "label", 3, class_assignment_mode="first-deterministic", seed=1)
    a, b = (
        table(theirs(made, LABELS), LABELS),
        ours(make_dataset, LABELS, 1, name="pathological", clients=20, classes=3),
    )
    assert (a > 0).sum(axis=1).tolist() == (b > 0).sum(axis=1).tolist() == [3] * 20
    assert skew_figures(a)["label_entropy_mean"] == pytest.approx(skew_figures(b)["label_entropy_mean"], abs=0.1)


def test_shards_are_of_the_same_size_and_number(make_dataset: Make) -> None:
    from flwr_datasets.partitioner import ShardPartitioner

    made = ShardPartitioner(10, "label", num_shards_per_partition=2, seed=1)
    a, b = table(theirs(made, LABELS), LABELS), ours(make_dataset, LABELS, 1, name="shard", clients=10, shards=2)
    assert a.sum(axis=1).tolist() == b.sum(axis=1).tolist() == [200] * 10
    for counts in (a, b):  # one or two classes each, in shards of 100
        assert set(np.unique(counts)) <= {0, 100, 200}


class TestReasons:
    """What `fedlab.data.partition.steps` says of flwr-datasets; when one of these fails, take theirs."""

    def test_its_dirichlet_gives_up(self, make_dataset: Make) -> None:
        from flwr_datasets.partitioner import DirichletPartitioner

        made = DirichletPartitioner(50, "label", 0.001, min_partition_size=1, seed=0)
        with (
            pytest.warns(UserWarning, match="was not satisfied"),
            pytest.raises(ValueError, match="max number of attempts"),
        ):
            theirs(made, LABELS)
        assert ours(make_dataset, LABELS, 0, name="dirichlet", clients=50, alpha=0.001).sum() == 2000

    def test_its_shards_lose_samples(self, make_dataset: Make) -> None:
        from flwr_datasets.partitioner import ShardPartitioner

        labels = np.arange(103) % 4
        lost = theirs(ShardPartitioner(5, "label", shard_size=10, num_shards_per_partition=2, seed=0), labels)
        assert sum(len(part) for part in lost) < 103
        assert ours(make_dataset, labels, 0, name="shard", clients=5, shards=2).sum() == 103

    def test_its_pathological_step_loses_classes(self, make_dataset: Make) -> None:
        from flwr_datasets.partitioner import PathologicalPartitioner

        made = PathologicalPartitioner(5, "label", 2, class_assignment_mode="random", seed=0)
        with pytest.warns(UserWarning, match="class"):
            lost = theirs(made, LABELS)
        assert sum(len(part) for part in lost) < 2000
        assert (ours(make_dataset, LABELS, 0, name="pathological", clients=5, classes=2).sum(axis=0) == 200).all()
