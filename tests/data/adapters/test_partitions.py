"""Partitions of flwr-datasets become the clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    VerticalEvenPartitioner,
)
from torch.utils.data import TensorDataset

import fedlab
from fedlab.config import Component
from fedlab.data.partition.partition import make_steps, partition
from fedlab.errors import DataError

COUNT = 60
X = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
Y = np.arange(COUNT) % 3
TRAIN, TEST = slice(0, 42), slice(42, COUNT)


def table(part: slice, **more: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"features": X[part].tolist(), "label": Y[part], **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set on this disk, as the hub has them."""
    place = tmp_path_factory.mktemp("hub")
    for name, part in (("train", TRAIN), ("test", TEST)):
        table(part).to_parquet(place / f"{name}.parquet")
    return place


def clients(data: fedlab.Dataset) -> list[tuple[str, list[list[float]], list[list[float]]]]:
    """Name, training and test samples of each client that the step natural makes."""
    parts = partition(data, make_steps([Component(name="natural")]), 0)
    return [
        (part.name, data.train["features"][part.train].tolist(), data.test["features"][part.test].tolist())
        for part in parts
    ]


def rows(data: Any) -> list[list[float]]:
    return sorted(np.asarray(data.with_format("numpy")[:]["features"], np.float32).tolist())


def test_the_partitions_of_a_federated_data_set_are_the_clients(folder: Path) -> None:
    def federated() -> FederatedDataset:
        partitioner = DirichletPartitioner(num_partitions=4, partition_by="label", alpha=1.0, min_partition_size=3)
        return FederatedDataset(dataset=str(folder), partitioners={"train": partitioner})

    data = fedlab.as_dataset(federated())
    assert data.divided
    assert (len(data.train), len(data.test)) == (42, 18)
    theirs = federated()
    found = clients(data)
    assert [name for name, _, _ in found] == ["0", "1", "2", "3"]
    for index, (_, train, _) in enumerate(found):
        assert sorted(train) == rows(theirs.load_partition(index))
    assert sorted(row for _, _, test in found for row in test) == sorted(X[TEST].tolist()), "each test sample once"
    assert fedlab.as_dataset(federated()).fingerprint == data.fingerprint
    assert any("data.partition: natural" in warning for warning in data.warnings)


def test_test_samples_follow_the_training_samples_class_by_class(folder: Path) -> None:
    one_class = PathologicalPartitioner(3, "label", 1, class_assignment_mode="deterministic")
    data = fedlab.as_dataset(FederatedDataset(dataset=str(folder), partitioners={"train": one_class}))
    for client in range(3):
        held = set(data.train["label"][data.train["group"] == client].tolist())
        assert len(held) == 1
        assert set(data.test["label"][data.test["group"] == client].tolist()) == held


def test_test_samples_with_partitions_of_their_own_keep_them(folder: Path) -> None:
    splits = {"train": IidPartitioner(3), "test": IidPartitioner(3)}
    theirs = FederatedDataset(dataset=str(folder), partitioners=splits)
    for index, (_, train, test) in enumerate(clients(fedlab.as_dataset(theirs))):
        assert sorted(train) == rows(theirs.load_partition(index, "train"))
        assert sorted(test) == rows(theirs.load_partition(index, "test"))


DATA: dict[str, Any] = {
    "arrays": (X, Y),
    "torch": TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    "mapping": {"features": X, "label": Y},
    "hugging face": table(slice(None)),
}


@pytest.mark.parametrize("form", DATA)
def test_a_partitioner_beside_any_data_divides_it_and_can_be_given_again(form: str) -> None:
    partitioner = DirichletPartitioner(num_partitions=3, partition_by="label", alpha=0.5, min_partition_size=5)
    data = fedlab.as_dataset((DATA[form], partitioner))
    assert not partitioner.is_dataset_assigned()
    assert fedlab.as_dataset(DATA[form], partition=partitioner).fingerprint == data.fingerprint
    theirs = DirichletPartitioner(num_partitions=3, partition_by="label", alpha=0.5, min_partition_size=5)
    theirs.dataset = table(slice(None))
    for index, (_, train, test) in enumerate(clients(data)):
        assert sorted([*train, *test]) == rows(theirs.load_partition(index))
        assert len(test) == max(1, round(0.2 * len([*train, *test]))), "each client holds out its own share"


def test_training_samples_alone_are_divided_where_test_samples_are_given() -> None:
    data = fedlab.as_dataset((table(TRAIN), IidPartitioner(3)), test=table(TEST))
    assert np.bincount(data.train["group"]).tolist() == [14, 14, 14]
    assert np.bincount(data.test["group"]).tolist() == [6, 6, 6]


def test_a_partitioner_with_samples_is_data_and_its_owners_give_the_names() -> None:
    partitioner = NaturalIdPartitioner(partition_by="hospital")
    partitioner.dataset = table(slice(None), hospital=np.array(["north", "south", "east"])[Y].tolist())
    found = clients(fedlab.as_dataset(partitioner))
    assert [name for name, _, _ in found] == ["east", "north", "south"]
    assert sorted([*found[1][1], *found[1][2]]) == sorted(X[Y == 0].tolist())


class Some(Partitioner):
    """Gives samples to some clients only, and some samples to nobody."""

    @property
    def num_partitions(self) -> int:
        return 4

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        return self.dataset.select(range(10) if partition_id == 1 else range(10, 15) if partition_id == 3 else [])


def test_samples_without_a_client_and_clients_without_a_sample_are_counted() -> None:
    data = fedlab.as_dataset((X, Y), partition=Some())
    assert (len(data.train), len(data.test)) == (12, 3)
    assert [name for name, _, _ in clients(data)] == ["1", "3"]
    (left,) = (left for left in data.left_out if left.what == "samples")
    assert (left.count, left.total) == (45, 60)
    assert any("2 of 4 partitions hold no sample" in warning for warning in data.warnings)


def test_owners_of_the_data_make_way_and_that_is_counted() -> None:
    data = fedlab.as_dataset({"features": X, "label": Y, "group": Y}, partition=IidPartitioner(2))
    assert data.train.group_names == ("0", "1")
    assert any(left.examples == ("group",) for left in data.left_out)


def assigned() -> Any:
    partitioner = IidPartitioner(2)
    partitioner.dataset = table(slice(None))
    return partitioner


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (((X, Y), VerticalEvenPartitioner(2)), "whole samples"),
        (((X, Y), DirichletPartitioner(2, "color", 0.5)), "with the columns label"),
        (IidPartitioner(2), r"data=\(data, partitioner\)"),
        (((X, Y), assigned()), "a new IidPartitioner"),
        ((fedlab.from_arrays(X, Y, X, Y), IidPartitioner(2)), "data.partition"),
        (((X, Y), ((X, Y), IidPartitioner(2))), "training samples with a partition"),
    ],
)
def test_what_cannot_be_divided_is_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fedlab.as_dataset(data)


@pytest.mark.parametrize(
    ("splits", "words"), [({"test": 2}, "a partitioner for train"), ({"train": 2, "more": 2}, "partitioner|loaded")]
)
def test_a_federated_data_set_without_training_partitions_is_refused(
    folder: Path, splits: dict[str, int], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        fedlab.as_dataset(FederatedDataset(dataset=str(folder), partitioners=splits))


def test_a_federated_data_set_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whose data can be loaded"):
        fedlab.as_dataset(FederatedDataset(dataset=str(tmp_path / "absent"), partitioners={"train": 2}))
