"""Clients that only evaluate, and clients without test samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedlab.config import DataConfig, parse
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Dataset
from fedlab.errors import ConfigErrors, DataError

Make = Callable[..., Dataset]


def federated(dataset: Dataset, seed: int = 0, **changes: Any) -> FederatedData:
    raw = {"source": "none", "partition": [{"name": "iid", "clients": 10}], **changes}
    return FederatedData(dataset, parse(DataConfig, raw), seed)


@pytest.fixture(scope="module")
def dataset(make_dataset: Make) -> Dataset:
    return make_dataset(np.arange(300) % 5, domains=3)


class TestUnseen:
    @pytest.mark.parametrize(("share", "count"), [(0.3, 3), (0.19, 1), (0.01, 1), (0.99, 9)])
    def test_a_share_is_drawn_by_seed(self, dataset: Dataset, share: float, count: int) -> None:
        draws = [federated(dataset, seed, unseen=share).unseen for seed in range(20)]
        assert all(len(draw) == count for draw in draws)
        assert draws[3] == federated(dataset, 3, unseen=share).unseen
        assert len(set(draws)) > 1

    def test_a_domain_is_held_out_by_a_pattern(self, dataset: Dataset) -> None:
        steps = [{"name": "domain"}, {"name": "iid", "clients": 3}]
        data = federated(dataset, partition=steps, unseen=["d1-*", "d0-2"])
        assert {data.partition.names[client] for client in data.unseen} == {"d1-0", "d1-1", "d1-2", "d0-2"}
        facts = data.summary(1)["clients"]
        assert [client["name"] for client in facts if client["unseen"]] == ["d0-2", "d1-0", "d1-1", "d1-2"]

    @pytest.mark.parametrize(
        ("unseen", "told"),
        [(["11"], "did you mean '1'"), (["*"], "at least one client to train"), (["1", "x*"], "x\\*")],
    )
    def test_what_leaves_nothing_is_refused(self, dataset: Dataset, unseen: list[str], told: str) -> None:
        with pytest.raises(DataError, match=told) as caught:
            federated(dataset, unseen=unseen)
        assert caught.value.key == "data.unseen"

    @pytest.mark.parametrize("unseen", [0, 1, -0.5, True, "d0", {"a": 1}, [3]])
    def test_values_that_are_neither_share_nor_names_are_refused(self, dataset: Dataset, unseen: object) -> None:
        with pytest.raises(ConfigErrors) as caught:
            federated(dataset, unseen=unseen)
        assert {error.key.split(".")[0] for error in caught.value.errors} == {"unseen"}
        assert not any("[" in error.key for error in caught.value.errors)

    def test_one_client_cannot_be_held_out(self, dataset: Dataset) -> None:
        with pytest.raises(DataError, match="at least 2 clients"):
            federated(dataset, partition=[], unseen=0.5)

    def test_clients_without_test_samples_are_not_worth_holding_out(self, make_dataset: Make) -> None:
        with pytest.raises(DataError, match="that have test samples"):
            federated(make_dataset(np.arange(300) % 5, np.arange(0)), unseen=0.5)


class TestTestClients:
    @pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.3, 3), (0.01, 1)])
    def test_a_share_of_the_clients_keeps_its_test_samples(self, dataset: Dataset, share: float, count: int) -> None:
        everything, some = federated(dataset), federated(dataset, test_clients=share)
        sizes = [some.num_test(client) for client in range(10)]
        assert np.count_nonzero(sizes) == count
        for client in np.flatnonzero(sizes):
            assert np.array_equal(some.partition[client].test, everything.partition[client].test)
            assert len(some.client(client).test) == sizes[client]
        assert [some.num_train(client) for client in range(10)] == [30] * 10
        assert np.array_equal(federated(dataset, test_clients=share).partition.test.sizes, sizes)

    def test_unseen_clients_always_keep_theirs(self, dataset: Dataset) -> None:
        data = federated(dataset, test_clients=0.2, unseen=0.5)
        tested = {client for client in range(10) if data.num_test(client)}
        assert data.unseen < tested
        assert len(tested) == 5 + 1

    def test_who_has_none_is_not_chosen(self, make_dataset: Make) -> None:
        few = make_dataset(np.arange(300) % 5, np.arange(2))
        assert sum(federated(few, seed, test_clients=0.1).partition.test.sizes.sum() for seed in range(5)) == 5
