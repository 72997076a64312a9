"""Data that moves over rounds: a pure function of data, configuration, seed and round."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlab.config import DataConfig, parse
from fedlab.data import federated as module
from fedlab.data.corruptions import CORRUPTIONS, corrupt
from fedlab.data.federated import FederatedData
from fedlab.data.partition.dividing import fill
from fedlab.data.samples import Dataset, Samples
from fedlab.errors import ConfigError, ConfigErrors, DataError
from fedlab.seeding import derive_seed

Make = Callable[..., Dataset]
LABELS = {"name": "labels", "rounds": 10, "alpha": 0.5, "share": 0.2}
FOG = {"name": "corruption", "corruptions": ["fog"], "rounds": 10}


def drifting(dataset: Dataset, *drifts: dict[str, Any], seed: int = 0, **changes: Any) -> FederatedData:
    raw = {"source": "none", "partition": [{"name": "iid", "clients": 4}], "drift": list(drifts), **changes}
    return FederatedData(dataset, parse(DataConfig, raw), seed)


def positions(data: FederatedData, client: int, round: int, split: str = "train") -> list[int]:
    return list(getattr(data.client(client, round), split)["x"])


def mix(data: FederatedData, client: int, round: int, split: str = "train") -> np.ndarray:
    samples = getattr(data.client(client, round), split)
    return np.bincount(samples["label"], minlength=samples.num_classes) / len(samples)


class TestLabels:
    def test_a_clients_mix_moves_in_a_straight_line_from_one_draw_to_another(self, make_dataset: Make) -> None:
        data = drifting(make_dataset(np.arange(20_000) % 10), LABELS)
        for client in range(4):
            first, middle, last = (mix(data, client, round) for round in (1, 6, 11))
            assert np.abs(first - last).sum() > 0.3
            assert middle == pytest.approx((first + last) / 2, abs=2 / data.num_train(client))
        assert np.abs(mix(data, 0, 1) - mix(data, 1, 1)).sum() > 0.2

    def test_it_rests_before_and_after(self, make_dataset: Make) -> None:
        data = drifting(make_dataset(np.arange(2000) % 10), {**LABELS, "begin": 4, "rounds": 2})
        held = [positions(data, 2, round) for round in range(9)]
        assert held[0] == held[1] == held[4]
        assert held[4] != held[5] != held[6]
        assert held[6] == held[7] == held[8]

    def test_a_rounds_data_depends_on_nothing_that_came_before(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(2000) % 10, images=(1, 4, 4))
        forwards, backwards = (drifting(dataset, LABELS, FOG) for _ in range(2))
        prints = {(c, r): forwards.client(c, r).fingerprint for r in range(12) for c in range(4)}
        copied = pickle.loads(pickle.dumps(backwards))
        for data in (backwards, copied):
            assert {(c, r): data.client(c, r).fingerprint for c in (3, 1, 0, 2) for r in range(11, -1, -1)} == prints
        assert drifting(dataset, LABELS, FOG, seed=1).client(0, 5).fingerprint != prints[0, 5]

    @given(st.data())
    @settings(max_examples=25)
    def test_every_round_has_as_many_distinct_samples_of_the_clients_own(
        self, make_dataset: Make, data: st.DataObject
    ) -> None:
        values = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=60)))
        drift = {
            "name": "labels",
            "alpha": data.draw(st.floats(1e-3, 1e3)),
            "share": data.draw(st.floats(0.01, 0.99)),
            "rounds": data.draw(st.integers(1, 9)),
        }
        clients = data.draw(st.integers(1, len(values)))
        made = drifting(
            make_dataset(values, values[: data.draw(st.integers(0, len(values)))]),
            drift,
            partition=[{"name": "dirichlet", "clients": clients, "alpha": 0.3}],
        )
        for client in range(clients):
            pool = made.partition[client]
            for round in range(11):
                for split, own in (("train", pool.train), ("test", pool.test)):
                    seen = (
                        made.part(client, round, split).train
                        if split == "train"
                        else made.part(client, round, split).test
                    )
                    assert set(seen) <= set(own)
                    assert (np.diff(seen) > 0).all()
                assert len(made.part(client, round, "train").train) == made.num_train(client) >= 1
                assert len(made.part(client, round, "test").test) == made.num_test(client)

    def test_few_samples_are_exchanged_from_round_to_round(self, make_dataset: Make) -> None:
        data = drifting(make_dataset(np.arange(4000) % 10), LABELS)
        for round in range(1, 11):
            now, then = (set(positions(data, 0, r)) for r in (round, round + 1))
            moved = np.abs(mix(data, 0, round) - mix(data, 0, round + 1)).sum() / 2
            assert len(then - now) == round_half(moved * len(now))

    def test_test_samples_follow_or_stay(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(20_000) % 10, np.arange(10_000) % 10)
        follow, stay = drifting(dataset, LABELS), drifting(dataset, {**LABELS, "test": "stay"})
        for round in (1, 11):
            assert mix(follow, 1, round, "test") == pytest.approx(mix(follow, 1, round), abs=0.01)
        assert positions(stay, 1, 11, "test") == positions(stay, 1, 1, "test") == positions(follow, 1, 1, "test")
        assert positions(stay, 1, 11) == positions(follow, 1, 11)

    def test_it_needs_labels(self) -> None:
        samples = Samples({"tokens": np.zeros((20, 2), np.int64)})
        with pytest.raises(DataError, match="labeled data"):
            drifting(Dataset("d", samples, samples), LABELS)


def round_half(value: float) -> int:
    return int(value + 0.5)


class TestCorruption:
    def test_severity_rises_from_the_clean_image_on(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(60) % 3, images=(3, 8, 8))
        data = drifting(dataset, FOG, mean=[0.0], std=[1.0])
        part = data.partition[2].train
        clean = dataset.train["image"][part]
        seed = derive_seed(0, "corruption", "train")
        for round, severity in ((0, 0), (1, 0), (3, 1), (7, 3), (11, 5), (99, 5)):
            spoilt = corrupt(clean, "fog", severity, seed, part) if severity else clean
            assert np.allclose(data.client(2, round).train["image"], spoilt.astype(np.float32) / 255)

    def test_the_corruption_steps_own_corruption_changes_its_severity(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(60) % 3, images=(3, 8, 8))
        steps = [{"name": "corruption", "corruptions": ["contrast", "fog"], "severity": 2}]
        drift = {"name": "corruption", "rounds": 2, "start": 5, "end": 1}
        data = drifting(dataset, drift, partition=steps)
        seen = [[data.part(client, round, "train").corruption for client in range(2)] for round in (1, 2, 3)]
        assert seen == [[("contrast", s), ("fog", s)] for s in (5, 3, 1)]

    def test_all_are_dealt_to_the_clients_in_turn(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(60) % 3, images=(3, 8, 8))
        drift = {"name": "corruption", "corruptions": "all", "rounds": 1}
        data = drifting(dataset, drift, partition=[{"name": "iid", "clients": 21}])
        names = [part[0] for client in range(21) if (part := data.part(client, 2, "train").corruption)]
        assert names == [*CORRUPTIONS, *CORRUPTIONS[:2]]

    def test_test_images_may_stay_clean(self, make_dataset: Make) -> None:
        dataset = make_dataset(np.arange(60) % 3, images=(3, 8, 8))
        data = drifting(dataset, {**FOG, "test": "stay"})
        first, last = data.client(0, 1), data.client(0, 11)
        assert np.array_equal(first.test["image"], last.test["image"])
        assert not np.array_equal(first.train["image"], last.train["image"])

    def test_what_makes_no_sense_is_refused(self, make_dataset: Make) -> None:
        pictures, plain = make_dataset(np.arange(60) % 3, images=(3, 8, 8)), make_dataset(np.arange(60) % 3)
        with pytest.raises(DataError, match="image data"):
            drifting(plain, FOG)
        with pytest.raises(DataError, match="which gives every client a corruption"):
            drifting(pictures, {"name": "corruption", "rounds": 3})
        with pytest.raises(DataError, match=r"own, because data\.partition has a corruption step"):
            drifting(pictures, FOG, partition=[{"name": "corruption", "corruptions": ["fog"]}])
        with pytest.raises(ConfigError, match="at most once"):
            drifting(pictures, FOG, FOG)
        with pytest.raises(ConfigErrors, match="'fog'"):
            drifting(pictures, {**FOG, "corruptions": ["fogg"]})


class TestCache:
    def test_a_round_is_prepared_once_and_dropped_for_the_next(
        self, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = drifting(make_dataset(np.arange(600) % 3, images=(1, 4, 4)), LABELS)
        assert data.client(0, 3) is data.client(0, 3)
        assert data.client(0, 0) is data.client(0, 1)  # the same stage
        for round in range(20):
            for client in range(4):
                data.client(client, round)
        assert len(data._ready) == 4
        monkeypatch.setattr(module, "_CACHE_BYTES", 1)
        data.client(0, 2)
        assert len(data._ready) == 1

    def test_without_drift_a_round_makes_no_difference(self, make_dataset: Make) -> None:
        data = drifting(make_dataset(np.arange(60) % 3, images=(1, 4, 4)))
        assert data.client(1, 0) is data.client(1, 99)
        assert data.client(1).train["x"].tolist() == data.partition[1].train.tolist()
        assert "drift" not in data.summary(5)


def test_the_summary_tells_what_is_seen_in_first_middle_and_last_round(make_dataset: Make) -> None:
    data = drifting(make_dataset(np.arange(800) % 4, images=(1, 4, 4)), LABELS, {**FOG, "rounds": 4, "end": 4})
    told = data.summary(5)
    assert [moment["round"] for moment in told["drift"]] == [1, 3, 5]
    assert [moment["corruption"] for moment in told["drift"]] == [[""] * 4, ["fog 2"] * 4, ["fog 4"] * 4]
    for moment in told["drift"]:
        counts = [np.bincount(data.client(c, moment["round"]).train["label"], minlength=4).tolist() for c in range(4)]
        assert moment["train"] == counts
    assert [client["train"] for client in told["clients"]] == told["drift"][0]["train"]
    assert [m["round"] for m in data.summary(1)["drift"]] == [1]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20)), min_size=1, max_size=8), st.floats(0, 1), st.booleans())
@example([(1.0, 0), (0.0, 5)], 1.0, False)
def test_filling_keeps_within_the_caps_and_uses_everything(
    places: list[tuple[float, int]], share: float, roomy: bool
) -> None:
    weights, caps = (np.array(values) for values in zip(*places, strict=True))
    weights = weights / weights.sum() if weights.sum() > 1e-9 else np.full(len(weights), 1 / len(weights))
    if roomy:
        caps = caps + 1000
    total = int(share * min(caps.sum(), 500))
    filled = fill(weights, total, caps)
    assert filled.sum() == total
    assert ((filled >= 0) & (filled <= caps)).all()
    if roomy:
        assert np.abs(filled - weights * total).max() < 1
