"""Held-out sets and validation samples: who gets what, and that nothing is in two places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fedlab
from fedlab.config import Config, DataConfig, parse
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import load_source
from fedlab.errors import ConfigErrors, DataError

N = 120


def config(partition: object = ({"name": "iid", "clients": 4},), **settings: object) -> DataConfig:
    return parse(DataConfig, {"source": "none", "partition": partition, **settings})


def dataset(owners: int = 12) -> Dataset:
    """Samples whose pixel says which one they are; the classes are of three sizes."""

    def part(offset: int) -> Samples:
        numbers = np.arange(N)
        images = ((numbers + offset) / 1000).astype(np.float32).reshape(-1, 1, 1, 1)
        labels = np.repeat([0, 1, 2], [N // 2, N // 3, N // 6])
        columns = {"image": images, "label": labels, "group": numbers % owners}
        return Samples(columns, ("a", "b", "c"), group_names=tuple(f"o{owner}" for owner in range(owners)))

    return Dataset("numbers", part(0), part(500))


def numbers(samples: Samples) -> list[int]:
    return np.rint(samples["image"].ravel() * 1000).astype(int).tolist()


def pool(data: FederatedData, split: str) -> list[int]:
    """Every sample that a client holds in a split, or holds back."""
    parts = [data.client(client) for client in range(data.num_clients)]
    back = [number for part in parts for number in raw(getattr(part, split))]
    return sorted(back)


def raw(samples: Samples) -> list[int]:
    return np.rint((samples["image"].ravel() * 0.5 + 0.5) * 1000).astype(int).tolist()


def test_held_samples_are_in_no_clients_pool_and_none_is_lost() -> None:
    data = FederatedData(dataset(), config(held={"probe": {"share": 0.25}, "more": {"share": 0.1}}), 0)
    probe, more = (set(numbers(data.dataset.server[name])) for name in ("probe", "more"))
    assert len(probe) == 30
    assert len(more) == 12
    left = pool(data, "train")
    assert not probe & more
    assert not (probe | more) & set(left)
    assert sorted([*probe, *more, *left]) == list(range(N))
    assert data.left_out == ()


def test_classes_keep_their_shares() -> None:
    held = FederatedData(dataset(), config(held={"probe": {"share": 0.1}}), 0).dataset.server["probe"]
    assert np.bincount(held["label"]).tolist() == [6, 4, 2]


def test_what_clients_keep_is_on_the_server_too() -> None:
    data = FederatedData(dataset(), config(held={"test": {"split": "test", "share": 1.0, "keep": True}}), 0)
    assert numbers(data.dataset.server["test"]) == pool(data, "test") == [500 + i for i in range(N)]


def test_an_owner_is_never_divided() -> None:
    data = FederatedData(dataset(), config(held={"probe": {"share": 0.5, "by": "group"}}), 0)
    held, kept = (set(samples["group"].tolist()) for samples in (data.dataset.server["probe"], data.dataset.train))
    assert len(held) == 6
    assert not held & kept


def test_the_draw_depends_on_the_data_and_not_on_the_run() -> None:
    wanted = {"probe": {"share": 0.25}}
    first, again = (FederatedData(dataset(), config(held=wanted), seed) for seed in (0, 1))
    other = FederatedData(dataset(), config(held={"probe": {"share": 0.25, "seed": 1}}), 0)
    assert numbers(first.dataset.server["probe"]) == numbers(again.dataset.server["probe"])
    assert numbers(first.dataset.server["probe"]) != numbers(other.dataset.server["probe"])


def test_sets_that_are_added_change_no_earlier_one() -> None:
    one = FederatedData(dataset(), config(held={"probe": {}}), 0)
    two = FederatedData(dataset(), config(held={"probe": {}, "a": {"share": 0.3}}), 0)
    assert numbers(one.dataset.server["probe"]) == numbers(two.dataset.server["probe"])


def test_fingerprints_know_of_what_is_held_back() -> None:
    plain = FederatedData(dataset(), config(), 0)
    held = FederatedData(dataset(), config(held={"probe": {}}), 0)
    back = FederatedData(dataset(), config(validation=0.2), 0)
    prints = {data.partition.fingerprint for data in (plain, held, back)}
    assert len(prints) == 3
    assert plain.server_fingerprint != held.server_fingerprint
    assert plain.client(0).fingerprint != back.client(0).fingerprint
    assert plain.client(0).fingerprint == plain.client(0).train.fingerprint
    assert plain.held_back == ()


class TestValidation:
    def test_clients_never_train_on_it(self) -> None:
        data, plain = FederatedData(dataset(), config(validation=0.2), 0), FederatedData(dataset(), config(), 0)
        for client in range(4):
            mine = data.client(client)
            train, back = raw(mine.train), raw(mine.validation)
            assert len(back) == 6
            assert data.num_train(client) == len(train) == 24
            assert sorted([*train, *back]) == sorted(raw(plain.client(client).train))
            assert raw(mine.test) == raw(plain.client(client).test)

    def test_by_owner(self) -> None:
        data = FederatedData(dataset(), config(validation={"share": 0.3, "by": "group"}), 0)
        for client in range(4):
            mine = data.client(client)
            assert not set(mine.train["group"].tolist()) & set(mine.validation["group"].tolist())
            assert len(mine.validation)

    def test_a_single_owner_stays_for_training(self) -> None:
        natural = [{"name": "natural"}]
        with pytest.raises(DataError, match="at least two owners"):
            FederatedData(dataset(), config(natural, validation={"share": 0.3, "by": "group"}), 0)

    def test_clients_without_are_told(self) -> None:
        one = dataset()
        few = replace(one, train=one.train.select(np.arange(5)))
        data = FederatedData(few, config(validation=0.5), 0)
        assert [len(data.client(client).validation) for client in range(4)] == [1, 0, 0, 0]
        assert data.warnings[-1].startswith("3 clients have no validation samples")

    def test_the_server_holds_some_back_of_what_was_held_out(self) -> None:
        settings: Any = {"held": {"probe": {"share": 0.5}}, "validation": 0.2}
        data = FederatedData(dataset(), config(**settings), 0)
        probe, back = (set(numbers(data.dataset.server[name])) for name in ("probe", "validation"))
        assert (len(probe), len(back)) == (48, 12)
        assert not probe & back
        assert "held out for the server: validation, 12 samples" in data.held_back

    def test_drift_moves_within_what_is_left(self) -> None:
        drift = [{"name": "labels", "rounds": 4, "share": 0.5}]
        data = FederatedData(dataset(), config(drift=drift, validation=0.2), 0)
        for client in range(4):
            back = raw(data.client(client, 1).validation)
            for round in range(1, 6):
                mine = data.client(client, round)
                assert not set(raw(mine.train)) & set(back)
                assert raw(mine.validation) == back


@pytest.mark.parametrize(
    ("held", "key", "expected"),
    [
        ({"probe": {"share": 1.0}}, "data.held.probe", "keep: true"),
        ({"probe": {"share": 0.0}}, "data.held.probe.share", "greater than 0"),
        ({"probe": {"split": "probe"}}, "data.held.probe.split", "'train' or 'test'"),
        ({"probe": {"shar": 0.1}}, "data.held.probe.shar", "no such key"),
        ({"train": {}}, "data.held", "another name than 'train'"),
        ({"a": {"share": 0.6}, "b": {"share": 0.6}}, "data.held", "add up to 1 at most"),
    ],
)
def test_wrong_settings_are_refused(held: object, key: str, expected: str) -> None:
    with pytest.raises(ConfigErrors, match=expected) as refused:
        parse(Config, {"method": "supervised", "data": {"source": "digits", "held": held}})
    assert key in str(refused.value)


@pytest.mark.parametrize(
    ("held", "data", "expected"),
    [
        ({"probe": {}}, replace(dataset(), server={"probe": dataset().test}), "no set of the source has"),
        ({"probe": {"by": "group"}}, dataset(owners=1), "at least two owners"),
        (
            {"probe": {"share": 0.9}},
            replace(dataset(), train=dataset().train.select(np.arange(1))),
            "at least two samples",
        ),
    ],
)
def test_what_the_data_does_not_allow(held: Any, data: Dataset, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        FederatedData(data, config(held=held), 0)


def test_samples_without_owners_are_refused() -> None:
    images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
    data = fedlab.from_arrays(images, labels, images, labels)
    for settings in ({"held": {"probe": {"by": "group"}}}, {"validation": {"share": 0.2, "by": "group"}}):
        with pytest.raises(DataError, match="column 'group'"):
            FederatedData(data, config(**settings), 0)


@pytest.mark.parametrize(
    "source",
    [
        {"name": "digits", "domains": ["handwritten"], "train_per_domain": 40, "test_per_domain": 20},
        {"name": "handwritten"},
        {"name": "sounds", "train": 24, "test": 8, "probe": 4, "seconds": 0.2},
        {"name": "union", "sources": {"a": {"name": "shifted_digits", "train_per_class": 3, "test_size": 20}}},
    ],
    ids=lambda source: source["name"],
)
def test_every_source(source: dict[str, Any]) -> None:
    wanted = parse(DataConfig, {"source": source, "held": {"own": {"share": 0.25}}, "validation": 0.25})
    loaded = load_source(wanted.source, 0)
    data = FederatedData(loaded, wanted, 0)
    sets = data.dataset.server
    assert {*loaded.server, "own", "validation"} == sets.keys()
    assert len(sets["own"]) + len(sets["validation"]) + len(data.dataset.train) == len(loaded.train)
    assert len(data.server("own")) == len(sets["own"])
