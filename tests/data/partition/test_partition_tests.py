"""Every test sample ends with some client, whatever the partition; who only tests never trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.config import Component, DataConfig, parse
from fedlab.data.corruptions import CORRUPTIONS
from fedlab.data.federated import FederatedData
from fedlab.data.partition.partition import PARTITIONERS, Partition, class_counts, make_steps, partition
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import DataError, InputError

Make = Callable[..., Dataset]
STEPS = [name for name in PARTITIONERS.names() if name != "site"]  # which takes no data but that of sites
SMALL: dict[str, dict[str, Any]] = {"corruption": {"corruptions": ["fog", "contrast"]}}


def settings_of(name: str, clients: int = 3) -> dict[str, Any]:
    """A step of the registry, with so many clients where it can be told how many."""
    step = PARTITIONERS.find(name, "step")
    counted = {"clients": clients} if "clients" in step.Settings.model_fields else {}
    return {"name": name, **counted, **SMALL.get(name, {})}


def divide(dataset: Dataset, *steps: dict[str, Any], seed: int = 0) -> Partition:
    return partition(dataset, make_steps([Component(**step) for step in steps]), seed)


def federated(dataset: Dataset, *steps: dict[str, Any], **changes: Any) -> FederatedData:
    return FederatedData(dataset, parse(DataConfig, {"source": "none", "partition": list(steps), **changes}), 0)


def two_sided(train: tuple[list[int], ...], test: tuple[list[int], ...]) -> Dataset:
    """Samples with labels, domains and owners of their own on each side."""

    def samples(labels: list[int], domains: list[int], groups: list[int]) -> Samples:
        image = np.zeros((len(labels), 1, 2, 2), np.uint8)
        codes = {"label": labels, "domain": domains, "group": groups}
        columns = {name: np.array(values, np.int64) for name, values in codes.items()}
        names = (tuple(f"{letter}{code}" for code in range(5)) for letter in "cdg")
        return Samples({"image": image, **columns}, *names)

    return Dataset("made", samples(*train), samples(*test))


def holders(parts: Partition) -> Counter[int]:
    return Counter(index for part in parts for index in part.test.tolist())


def codes(least: int, most: int) -> st.SearchStrategy[tuple[list[int], ...]]:
    sizes = st.integers(least, most)
    return sizes.flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n) for _ in range(3)]))


class TestNothingVanishes:
    @pytest.mark.parametrize("name", STEPS)
    def test_foreign_classes_owners_and_domains_are_all_tested(self, name: str) -> None:
        labels = [0, 1, 2] * 8
        dataset = two_sided((labels, [0, 1] * 12, labels), ([0, 1, 2, 3] * 5, [0, 1, 2, 3] * 5, [0, 1, 2, 4] * 5))
        parts = divide(dataset, settings_of(name))
        assert holders(parts) == Counter(range(20))

    @pytest.mark.parametrize("last", STEPS)
    @given(train=codes(1, 40), test=codes(0, 20), first=st.lists(st.sampled_from(STEPS), max_size=2))
    @settings(max_examples=25)
    def test_whatever_the_steps_and_the_data(
        self, last: str, train: tuple[list[int], ...], test: tuple[list[int], ...], first: list[str]
    ) -> None:
        dataset = two_sided(train, test)
        names = [*first, last]
        try:
            parts = divide(dataset, *(settings_of(name, 2) for name in names))
        except InputError:
            return
        assert holders(parts) == Counter(range(len(dataset.test)))
        assert sorted(parts.train.order.tolist()) == list(range(len(dataset.train)))
        untrained = parts.train.sizes == 0
        assert not np.diff(untrained.astype(int)).min(initial=0) < 0, "those that train come first"
        assert parts.test.sizes[untrained].all()
        assert len(set(parts.names)) == len(parts)

    def test_every_copy_of_repeated_images_is_tested(self) -> None:
        dataset = two_sided(([0] * 6, [0] * 6, [0] * 6), ([0, 1], [0, 3], [0, 4]))
        repeated = {"name": "corruption", "images": "repeat"}
        parts = divide(dataset, repeated, {"name": "dirichlet", "clients": 2})
        assert holders(parts) == {0: len(CORRUPTIONS), 1: len(CORRUPTIONS)}


class TestClassesNobodyTrains:
    NAMES = ("dirichlet", "pathological", "shard", "size", "quantity")

    @pytest.mark.parametrize("name", NAMES)
    def test_they_change_no_draw_of_the_others(self, make_dataset: Make, name: str) -> None:
        train, test = np.arange(200) % 5, np.arange(60) % 5
        step = settings_of(name, 4)
        plain = divide(make_dataset(train, test), step)
        # behind the others, so that positions and the draws of the other classes are the same
        more = divide(make_dataset(train, np.concatenate([test, np.full(30, 5)])), step)
        for one, other in zip(plain, more, strict=True):
            assert one.train.tolist() == other.train.tolist()
            assert one.test.tolist() == [index for index in other.test.tolist() if index < 60]

    @pytest.mark.parametrize("name", NAMES)
    def test_whoever_trains_more_tests_more_of_them(self, make_dataset: Make, name: str) -> None:
        dataset = make_dataset(np.arange(1000) % 10, np.full(500, 10))
        parts = divide(dataset, settings_of(name, 5))
        assert np.abs(parts.test.sizes - parts.train.sizes / 2).max() < 1

    def test_many_rare_ones_do_not_all_go_to_the_first_client(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.zeros(100, int), np.arange(1, 41))
        parts = divide(dataset, {"name": "quantity", "clients": 10, "sigma": 0})
        assert parts.test.sizes.tolist() == [4] * 10
        held = class_counts(parts.test, dataset.test["label"], 41)
        assert (held.sum(axis=0)[1:] == 1).all()

    def test_they_are_drawn_by_seed(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.zeros(100, int), np.arange(1, 41))
        step = {"name": "quantity", "clients": 4, "sigma": 0}
        first, again, other = (divide(dataset, step, seed=seed)[0].test.tolist() for seed in (1, 1, 2))
        assert first == again != other


class TestWhoOnlyTests:
    TRAIN = ([0, 1] * 6, [0, 0, 1] * 4, [0, 1, 2] * 4)
    TEST = ([0, 1] * 3, [0, 1, 4] * 2, [0, 1, 3] * 2)

    @pytest.mark.parametrize(("name", "known", "stranger"), [("natural", "g012", "g3"), ("domain", "d01", "d4")])
    def test_an_owner_or_a_domain_is_an_unseen_client_behind_the_others(
        self, name: str, known: str, stranger: str
    ) -> None:
        data = federated(two_sided(self.TRAIN, self.TEST), {"name": name})
        letter, *numbers = known
        assert list(data.partition.names) == [*(f"{letter}{number}" for number in numbers), stranger]
        assert data.unseen == data.untrained == {len(numbers)}
        assert (data.num_train(len(numbers)), data.num_test(len(numbers))) == (0, 2)
        (warning,) = data.warnings
        assert repr(stranger) in warning
        assert "1 client has test samples but no training samples" in warning

    def test_later_steps_leave_it_whole_and_the_others_as_they_are(self) -> None:
        steps = {"name": "domain"}, {"name": "dirichlet", "clients": 2}
        without = tuple([value for value, at in zip(part, self.TEST[1], strict=True) if at != 4] for part in self.TEST)
        alone, joined = divide(two_sided(self.TRAIN, without), *steps), divide(two_sided(self.TRAIN, self.TEST), *steps)
        assert list(joined.names) == [*alone.names, "d4"]
        assert [part.train.tolist() for part in joined][:-1] == [part.train.tolist() for part in alone]
        assert joined[-1].test.tolist() == [2, 5]

    def test_every_corruption_of_it_is_a_client(self) -> None:
        steps = {"name": "domain"}, {"name": "corruption", "corruptions": ["fog", "contrast"], "images": "repeat"}
        parts = divide(two_sided(self.TRAIN, self.TEST), *steps)
        assert list(parts.names)[-2:] == ["d4-fog", "d4-contrast"]
        assert [part.corruption for part in parts][-2:] == [("fog", 3), ("contrast", 3)]
        assert [part.test.tolist() for part in parts][-2:] == [[2, 5]] * 2

    def test_an_owner_who_trains_elsewhere_tests_there(self) -> None:
        # of owner 1 one part trains, and both test
        train = ([0] * 5, [0, 0, 0, 1, 1], [0, 0, 1, 0, 0])
        test = ([0] * 4, [0, 0, 1, 1], [0, 1, 0, 1])
        dataset = two_sided(train, test)
        for seed in range(8):
            parts = divide(dataset, {"name": "iid", "clients": 2}, {"name": "natural"}, seed=seed)
            assert parts.train.sizes.all()
            for name, part in zip(parts.names, parts, strict=True):
                assert {f"g{group}" for group in dataset.test["group"][part.test]} <= {name[-2:]}

    def test_but_never_at_another_owner(self) -> None:
        train = ([0] * 4, [0, 0, 1, 1], [0, 0, 1, 1])
        dataset = two_sided(train, ([0] * 2, [0, 0], [0, 1]))  # owner 1 trains in domain 1 only
        parts = divide(dataset, {"name": "natural"}, {"name": "domain"})
        assert list(parts.names) == ["g0-d0", "g1-d1", "g1-d0"]
        assert [part.test.tolist() for part in parts] == [[0], [], [1]]

    def test_all_tests_may_be_strangers(self) -> None:
        data = federated(two_sided(self.TRAIN, ([0] * 4, [0] * 4, [3, 3, 4, 4])), {"name": "natural"})
        assert [data.num_test(client) for client in range(5)] == [0, 0, 0, 2, 2]
        assert "unseen clients only" in data.warnings[1]

    def test_shares_are_of_those_that_train(self) -> None:
        dataset = two_sided(([0] * 40, [0] * 40, [0, 1, 2, 3] * 10), ([0] * 10, [0] * 10, [0, 1, 2, 3, 4] * 2))
        plain = two_sided(([0] * 40, [0] * 40, [0, 1, 2, 3] * 10), ([0] * 8, [0] * 8, [0, 1, 2, 3] * 2))
        for seed in range(5):
            config = parse(DataConfig, {"source": "none", "partition": ["natural"], "unseen": 0.5, "test_clients": 0.5})
            ours, theirs = (FederatedData(data, config, seed) for data in (dataset, plain))
            assert ours.unseen == theirs.unseen | {4}
            assert [ours.num_test(client) for client in range(4)] == [theirs.num_test(client) for client in range(4)]
            assert ours.num_test(4) == 2

    def test_nobody_left_to_train_is_refused(self) -> None:
        with pytest.raises(DataError, match="at least one client to train"):
            federated(two_sided(self.TRAIN, self.TEST), {"name": "natural"}, unseen=["g0", "g1", "g2"])

    def test_skew_is_of_those_that_train(self) -> None:
        told = federated(two_sided(self.TRAIN, self.TEST), {"name": "natural"}).summary(1)
        assert (told["registered"], told["skew"]["clients"], told["skew"]["size_min"]) == (4, 3, 4)
        assert told["clients"][3]["domain"] == "d4"

    def test_two_owners_of_one_name_are_refused(self) -> None:
        def samples() -> Samples:
            columns = {"label": np.zeros(4, np.int64), "group": np.arange(4) % 2}
            return Samples(columns, ("a",), group_names=("ann", "ann"))

        with pytest.raises(DataError, match="'ann'"):
            divide(Dataset("made", samples(), samples()), {"name": "natural"})


class TestCounted:
    DATASET = two_sided(([0, 1] * 20, [0] * 40, [0, 1, 2, 3] * 10), ([0, 1] * 10, [0] * 20, [0, 1, 2, 3] * 5))

    def told(self, *steps: dict[str, Any], **changes: Any) -> dict[tuple[str, str], float]:
        data = federated(self.DATASET, *(steps or ({"name": "natural"},)), **changes)
        unused = {(left.what, left.why.split()[0]): left.count for left in data.left_out}
        assert all(left.notice.startswith("note: ") for left in data.left_out)
        seen = sum(data.num_test(client) for client in range(data.num_clients))
        assert seen == len(self.DATASET.test) - sum(
            count for (what, _), count in unused.items() if what == "test samples"
        )
        return unused

    @pytest.mark.parametrize("name", STEPS)
    def test_nothing_is_left_out_by_default(self, name: str) -> None:
        assert self.told(settings_of(name)) == {}

    def test_clients_without_tests(self) -> None:
        assert self.told(test_clients=0.5) == {("test samples", "data.test_clients"): 10}

    def test_unseen_clients_do_not_train(self) -> None:
        assert self.told(unseen=["g0"]) == {("training samples", "they"): 10}

    def test_drift_shows_a_share(self) -> None:
        drift = [{"name": "labels", "rounds": 3, "share": 0.4}]
        assert self.told(drift=drift) == {("training samples", "data.drift"): 24, ("test samples", "data.drift"): 12}

    def test_all_at_once(self) -> None:
        told = self.told(unseen=["g0"], test_clients=0.4, drift=[{"name": "labels", "rounds": 3, "share": 0.4}])
        assert told == {
            ("training samples", "they"): 10,
            ("training samples", "data.drift"): 18,
            ("test samples", "data.test_clients"): 10,
            ("test samples", "data.drift"): 6,
        }

    def test_no_test_at_all_is_said(self, make_dataset: Make) -> None:
        data = federated(make_dataset(np.zeros(4, int), np.zeros(0, int)), {"name": "iid", "clients": 2})
        assert data.warnings == (data.warnings[0],)
        assert "no client has test samples" in data.warnings[0]
