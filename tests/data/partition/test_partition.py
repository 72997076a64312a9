from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlab.config import Component
from fedlab.data.corruptions import CORRUPTIONS
from fedlab.data.partition.partition import Partition, class_counts, make_steps, partition, summary
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError

Make = Callable[..., Dataset]
STEPS: dict[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.3},
    "pathological": {"classes": 2},
    "shard": {"shards": 2},
    "size": {},
    "quantity": {"sigma": 1.5},
}


def divide(dataset: Dataset, *steps: dict[str, Any], seed: int = 0) -> Partition:
    return partition(dataset, make_steps([Component(**step) for step in steps]), seed)


def held(parts: Partition, split: str = "train") -> list[list[int]]:
    return [getattr(part, split).tolist() for part in parts]


def disjoint_and_complete(parts: Partition, samples: int, split: str = "train") -> bool:
    return sorted(index for part in held(parts, split) for index in part) == list(range(samples))


@st.composite
def labels(draw: st.DrawFn, most: int = 80) -> np.ndarray:
    return np.array(draw(st.lists(st.integers(0, draw(st.integers(0, 6))), min_size=1, max_size=most)))


class TestEveryStep:
    @pytest.mark.parametrize("name", STEPS)
    def test_it_divides_all_samples_without_overlap(self, make_dataset: Make, name: str) -> None:
        dataset = make_dataset(np.arange(600) % 10, np.arange(150) % 10)
        parts = divide(dataset, {"name": name, "clients": 15, **STEPS[name]})
        assert len(parts) == 15
        assert disjoint_and_complete(parts, 600)
        assert disjoint_and_complete(parts, 150, "test")
        assert len({part.name for part in parts}) == 15
        assert min(len(part.train) for part in parts) >= 1

    @pytest.mark.parametrize("name", STEPS)
    def test_it_depends_on_data_settings_and_seed_only(self, make_dataset: Make, name: str) -> None:
        dataset = make_dataset(np.arange(600) % 10)
        step = {"name": name, "clients": 15, **STEPS[name]}
        one, again = divide(dataset, step, seed=3), divide(make_dataset(np.arange(600) % 10), step, seed=3)
        assert (held(one), held(one, "test"), one.fingerprint) == (held(again), held(again, "test"), again.fingerprint)
        other = divide(dataset, step, seed=4)
        assert held(other) != held(one)
        assert (
            len({one.fingerprint, other.fingerprint, divide(dataset, {**step, "clients": 14}, seed=3).fingerprint}) == 3
        )

    @given(st.data())
    @settings(max_examples=120)
    def test_what_is_refused_names_a_limit_that_works(self, make_dataset: Make, data: st.DataObject) -> None:
        dataset = make_dataset(data.draw(labels(40)))
        name = data.draw(st.sampled_from(sorted(STEPS)))
        step = {"name": name, "clients": data.draw(st.integers(1, 60)), **STEPS[name]}
        settable = {"dirichlet": "min_samples", "quantity": "min_samples", "pathological": "classes", "shard": "shards"}
        setting = settable.get(name)
        if setting:
            step[setting] = data.draw(st.integers(1, 12))
        try:
            parts = divide(dataset, step)
        except DataError as error:
            *_, key = error.key.split(".")
            ((direction, limit),) = re.findall(r"^(at most |at least )?(\d+)", error.expected)
            step[key] = int(limit)
            if key != "clients":  # it suits some number of clients, if perhaps not the one that was asked for
                assert any(possible(dataset, {**step, "clients": clients}) for clients in range(1, 41))
                return
            beyond = int(limit) + (1 if direction == "at most " else -1)
            assert not (beyond and possible(dataset, {**step, "clients": beyond}))
            parts = divide(dataset, step)
        assert disjoint_and_complete(parts, len(dataset.train))

    def test_the_limit_holds_for_the_tightest_part(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.zeros(30, int), domains=4)  # 8, 8, 7, 7 samples
        with pytest.raises(DataError, match="at most 7 for the 7 training samples of 'd2'") as caught:
            divide(dataset, {"name": "domain"}, {"name": "iid", "clients": 20})
        assert caught.value.key == "data.partition.1.clients"
        assert len(divide(dataset, {"name": "domain"}, {"name": "iid", "clients": 7})) == 28

    @pytest.mark.parametrize("name", ["iid", "dirichlet", "shard", "quantity"])
    def test_a_hundred_thousand_clients_need_little_memory(self, make_dataset: Make, name: str) -> None:
        dataset = make_dataset(np.arange(200_000) % 10)
        tracemalloc.start()
        parts = divide(dataset, {"name": name, "clients": 100_000, **STEPS[name]})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(parts) == 100_000
        assert parts.train.sizes.min() >= 1
        assert peak < 100 * 2**20

    def test_no_step_is_one_client(self, make_dataset: Make) -> None:
        (part,) = divide(make_dataset(np.arange(7) % 2))
        assert (part.name, part.train.tolist()) == ("all", list(range(7)))

    def test_clients_are_reached_like_a_list(self, make_dataset: Make) -> None:
        parts = divide(make_dataset(np.arange(30) % 3), {"name": "iid", "clients": 4})
        assert [part.name for part in parts] == ["0", "1", "2", "3"] == [part.name for part in parts[0:4]]
        assert parts[-1].name == "3"
        with pytest.raises(IndexError):
            parts[4]


def possible(dataset: Dataset, step: dict[str, Any]) -> bool:
    try:
        divide(dataset, step)
    except DataError:
        return False
    return True


class TestDirichlet:
    @given(labels(), st.floats(1e-3, 1e3), st.integers(1, 80), st.integers(0, 5))
    @example(np.array([0]), 1e-3, 1, 0)
    @example(np.zeros(80, int), 1e-3, 80, 0)
    @example(np.arange(80) % 7, 1e3, 80, 0)
    @settings(max_examples=150)
    def test_it_ends_for_every_alpha_and_number_of_clients(
        self, make_dataset: Make, values: np.ndarray, alpha: float, clients: int, seed: int
    ) -> None:
        clients = min(clients, len(values))
        dataset = make_dataset(values)
        parts = divide(dataset, {"name": "dirichlet", "alpha": alpha, "clients": clients}, seed=seed)
        assert len(parts) == clients
        assert disjoint_and_complete(parts, len(values))
        assert min(len(part.train) for part in parts) >= 1

    def test_every_client_gets_its_least_number_of_samples(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(500) % 5)
        parts = divide(dataset, {"name": "dirichlet", "clients": 20, "alpha": 0.01, "min_samples": 25})
        assert [len(part.train) for part in parts] == [25] * 20
        parts = divide(dataset, {"name": "dirichlet", "clients": 20, "alpha": 0.01, "min_samples": 10})
        assert min(len(part.train) for part in parts) == 10
        assert disjoint_and_complete(parts, 500)

    def test_a_large_alpha_is_even_and_a_small_one_is_not(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(5000) % 10)
        distances = [
            summary(divide(dataset, {"name": "dirichlet", "clients": 10, "alpha": a}), dataset)["skew"][
                "label_emd_mean"
            ]
            for a in (1000.0, 1.0, 0.1, 0.001)
        ]
        assert distances == sorted(distances)
        assert distances[0] < 0.1
        assert distances[-1] > 1.2

    def test_shares_have_the_mean_and_variance_of_a_dirichlet_draw(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.zeros(2000, int))
        draws = [divide(dataset, {"name": "dirichlet", "clients": 4, "alpha": 0.5}, seed=s) for s in range(400)]
        shares = np.array([parts.train.sizes / 2000 for parts in draws])
        # Dirichlet(0.5 · 1₄): mean 1/4, variance (1/4 · 3/4) / (4 · 0.5 + 1) = 1/16
        assert shares.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.04)
        assert shares.var(axis=0) == pytest.approx([1 / 16] * 4, abs=0.015)


class TestPathological:
    @given(labels(), st.integers(1, 30), st.integers(1, 4), st.integers(0, 3))
    @settings(max_examples=120)
    def test_every_client_holds_so_many_classes(
        self, make_dataset: Make, values: np.ndarray, clients: int, classes: int, seed: int
    ) -> None:
        dataset = make_dataset(values)
        try:
            parts = divide(dataset, {"name": "pathological", "clients": clients, "classes": classes}, seed=seed)
        except DataError:
            return
        assert disjoint_and_complete(parts, len(values))
        assert [len(set(values[part.train])) for part in parts] == [classes] * clients

    def test_classes_are_held_by_as_many_clients(self, make_dataset: Make) -> None:
        values = np.arange(1000) % 10
        parts = divide(make_dataset(values), {"name": "pathological", "clients": 25, "classes": 2})
        holders = [sum(c in values[part.train] for part in parts) for c in range(10)]
        assert holders == [5] * 10
        assert [len(part.train) for part in parts] == [40] * 25

    def test_a_rare_class_goes_to_as_many_clients_as_it_has_samples_for(self, make_dataset: Make) -> None:
        values = np.r_[np.zeros(100, int), np.ones(100, int), np.full(2, 2)]
        parts = divide(make_dataset(values), {"name": "pathological", "clients": 20, "classes": 2})
        assert sum(2 in values[part.train] for part in parts) == 2

    def test_too_few_clients_for_the_classes_are_refused(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(100) % 10)
        with pytest.raises(DataError, match="at least 5"):
            divide(dataset, {"name": "pathological", "clients": 4, "classes": 2})
        with pytest.raises(DataError, match="at most 10, the classes there are"):
            divide(dataset, {"name": "pathological", "clients": 4, "classes": 11})


class TestShard:
    def test_a_client_holds_few_classes(self, make_dataset: Make) -> None:
        values = np.arange(1000) % 10
        parts = divide(make_dataset(values), {"name": "shard", "clients": 10, "shards": 2})
        assert [len(part.train) for part in parts] == [100] * 10
        assert max(len(set(values[part.train])) for part in parts) <= 2

    def test_samples_that_do_not_divide_evenly_are_kept(self, make_dataset: Make) -> None:
        parts = divide(make_dataset(np.arange(103) % 4), {"name": "shard", "clients": 5, "shards": 3})
        assert disjoint_and_complete(parts, 103)


class TestSize:
    @pytest.mark.parametrize(
        ("rule", "sizes"),
        [("linear", [100, 200, 300, 400]), ("square", [33, 133, 300, 534]), ("exponential", [32, 87, 236, 645])],
    )
    def test_sizes_follow_the_rule(self, make_dataset: Make, rule: str, sizes: list[int]) -> None:
        dataset = make_dataset(np.arange(1000) % 10)
        parts = divide(dataset, {"name": "size", "clients": 4, "rule": rule})
        assert [len(part.train) for part in parts] == sizes
        assert [len(part.test) for part in parts] == pytest.approx(sizes, abs=6)
        assert disjoint_and_complete(parts, 1000)

    @pytest.mark.parametrize(("rule", "most"), [("linear", 44), ("exponential", 7)])
    def test_the_largest_number_of_clients_is_named(self, make_dataset: Make, rule: str, most: int) -> None:
        dataset = make_dataset(np.arange(1000) % 10)
        with pytest.raises(DataError, match=f"at most {most} for"):
            divide(dataset, {"name": "size", "clients": 900, "rule": rule})
        assert len(divide(dataset, {"name": "size", "clients": most, "rule": rule})) == most
        with pytest.raises(DataError):
            divide(dataset, {"name": "size", "clients": most + 1, "rule": rule})


class TestQuantity:
    @given(labels(), st.floats(0, 1e6), st.integers(1, 80), st.integers(0, 5))
    @example(np.zeros(80, int), 1e6, 80, 0)
    @example(np.zeros(80, int), 0.0, 80, 0)
    @example(np.array([0]), 1e6, 1, 0)
    @settings(max_examples=150)
    def test_it_ends_for_every_sigma_and_number_of_clients(
        self, make_dataset: Make, values: np.ndarray, sigma: float, clients: int, seed: int
    ) -> None:
        clients = min(clients, len(values))
        parts = divide(make_dataset(values), {"name": "quantity", "sigma": sigma, "clients": clients}, seed=seed)
        assert len(parts) == clients
        assert disjoint_and_complete(parts, len(values))
        assert min(len(part.train) for part in parts) >= 1

    def test_the_logarithms_of_the_sizes_are_normal(self, make_dataset: Make) -> None:
        parts = divide(make_dataset(np.zeros(400_000, int)), {"name": "quantity", "clients": 1000, "sigma": 0.7})
        logs = np.log(parts.train.sizes)
        standard = (logs - logs.mean()) / logs.std()
        assert logs.std() == pytest.approx(0.7, abs=0.05)
        assert np.quantile(standard, [0.16, 0.5, 0.84]) == pytest.approx([-1, 0, 1], abs=0.12)

    def test_no_spread_gives_equal_sizes(self, make_dataset: Make) -> None:
        parts = divide(make_dataset(np.zeros(103, int)), {"name": "quantity", "clients": 10, "sigma": 0})
        assert sorted(parts.train.sizes) == [10] * 7 + [11] * 3

    def test_every_client_gets_its_least_number_of_samples(self, make_dataset: Make) -> None:
        step = {"name": "quantity", "clients": 20, "sigma": 5.0, "min_samples": 12}
        parts = divide(make_dataset(np.arange(500) % 5), step)
        assert parts.train.sizes.min() == 12
        assert parts.train.sizes.max() > 100
        with pytest.raises(DataError, match="at most 20 for the 500 training samples") as caught:
            divide(make_dataset(np.arange(500) % 5), {**step, "clients": 21, "min_samples": 25})
        assert caught.value.key == "data.partition.0.clients"


class TestColumns:
    def test_a_domain_or_an_owner_is_a_client(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(60) % 3, domains=4, groups=5)
        domains, owners = divide(dataset, {"name": "domain"}), divide(dataset, {"name": "natural"})
        assert [part.name for part in domains] == ["d0", "d1", "d2", "d3"]
        assert [part.name for part in owners] == ["g0", "g1", "g2", "g3", "g4"]
        assert all((dataset.train["group"][part.train] == i).all() for i, part in enumerate(owners))
        assert all((dataset.test["domain"][part.test] == i).all() for i, part in enumerate(domains))
        assert disjoint_and_complete(owners, 60, "test")

    def test_an_owner_without_training_samples_is_a_client_after_the_others(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.zeros(3, int), np.zeros(5, int), groups=5)
        parts = divide(dataset, {"name": "natural"})
        assert held(parts) == [[0], [1], [2], [], []]
        assert held(parts, "test") == [[0], [1], [2], [3], [4]]
        assert list(parts.names) == ["g0", "g1", "g2", "g3", "g4"]

    def test_data_without_owners_is_refused(self, make_dataset: Make) -> None:
        with pytest.raises(DataError, match="'group' column"):
            divide(make_dataset(np.zeros(9, int)), {"name": "natural"})


class TestComposition:
    def test_client_counts_multiply(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(600) % 10, domains=3)
        parts = divide(dataset, {"name": "domain"}, {"name": "dirichlet", "clients": 4, "alpha": 0.5})
        assert [part.name for part in parts][:5] == ["d0-0", "d0-1", "d0-2", "d0-3", "d1-0"]
        assert disjoint_and_complete(parts, 600)
        assert disjoint_and_complete(parts, 600, "test")
        assert all(len(set(dataset.train["domain"][part.train])) == 1 for part in parts)
        assert held(parts)[0] != held(parts)[4]

    @given(st.data())
    @settings(max_examples=150)
    def test_three_steps_in_any_order_are_disjoint_and_complete(self, make_dataset: Make, data: st.DataObject) -> None:
        dataset = make_dataset(data.draw(labels(60)), domains=2, groups=3, images=(1, 2, 2))
        kinds: dict[str, dict[str, Any]] = {
            **{name: {**given, "clients": data.draw(st.integers(1, 4))} for name, given in STEPS.items()},
            "dirichlet": {"clients": data.draw(st.integers(1, 4)), "alpha": data.draw(st.floats(1e-3, 1e3))},
            "quantity": {"clients": data.draw(st.integers(1, 4)), "sigma": data.draw(st.floats(0, 1e3))},
            "natural": {},
            "domain": {},
            "corruption": {"corruptions": ["fog", "contrast"]},
        }
        names = data.draw(st.lists(st.sampled_from(sorted(kinds)), min_size=3, max_size=3))
        if names.count("corruption") > 1:
            names = ["corruption", "domain", "natural"]
        try:
            parts = divide(dataset, *({"name": name, **kinds[name]} for name in names))
        except DataError:
            return
        assert disjoint_and_complete(parts, len(dataset.train))
        assert min(len(part.train) for part in parts) >= 1
        assert disjoint_and_complete(parts, len(dataset.test), "test")
        assert len(set(parts.names)) == len(parts)

    def test_the_papers_57_clients_are_one_configuration(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(300) % 10, images=(3, 8, 8))
        corruption = {"name": "corruption", "images": "repeat", "severity": 3}
        parts = divide(dataset, corruption, {"name": "dirichlet", "clients": 3, "alpha": 0.5})
        assert len(parts) == 57
        assert {part.corruption for part in parts} == {(name, 3) for name in CORRUPTIONS}
        assert parts[3].name == f"{CORRUPTIONS[1]}-0"
        for start in range(0, 57, 3):  # every corruption has every image, once
            assert sorted(i for part in parts[start : start + 3] for i in part.train.tolist()) == list(range(300))

    def test_split_corruptions_share_the_images_out(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(100) % 10, images=(3, 8, 8))
        assert disjoint_and_complete(divide(dataset, {"name": "corruption"}), 100)
        with pytest.raises(DataError, match="at most 10 for") as caught:
            divide(make_dataset(np.arange(10), images=(3, 8, 8)), {"name": "corruption"})
        assert caught.value.key == "data.partition.0.corruptions"

    def test_corruptions_need_images(self, make_dataset: Make) -> None:
        with pytest.raises(DataError, match="image data"):
            divide(make_dataset(np.arange(100) % 10), {"name": "corruption"})


class TestTestSamples:
    @pytest.mark.parametrize("name", ["dirichlet", "pathological", "shard", "size", "quantity"])
    def test_they_follow_the_clients_training_distribution(self, make_dataset: Make, name: str) -> None:
        dataset = make_dataset(np.arange(4000) % 10, np.arange(2000) % 10)
        parts = divide(dataset, {"name": name, "clients": 8, **STEPS[name]})
        train = class_counts(parts.train, dataset.train["label"], 10)
        test = class_counts(parts.test, dataset.test["label"], 10)
        assert np.abs(test - train / 2).max() <= 1

    def test_a_class_without_training_samples_is_tested_all_the_same(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.zeros(20, int), np.arange(20) % 2)
        parts = divide(dataset, {"name": "dirichlet", "clients": 2})
        assert disjoint_and_complete(parts, 20, "test")

    def test_clients_may_be_without_any(self, make_dataset: Make) -> None:
        parts = divide(make_dataset(np.arange(20) % 2, np.arange(3) % 2), {"name": "iid", "clients": 10})
        assert sorted(len(part.test) for part in parts) == [0] * 7 + [1] * 3
        assert len(divide(make_dataset(np.arange(20) % 2, np.arange(0)), {"name": "dirichlet", "clients": 3})) == 3


def test_samples_without_columns_have_no_clients() -> None:
    with pytest.raises(DataError, match="no number of clients suits"):
        divide(Dataset("d", Samples({}), Samples({})), {"name": "iid", "clients": 1})
