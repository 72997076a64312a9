from __future__ import annotations

import numpy as np

from fedlab.config import Component
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source


def load(**settings: object) -> Dataset:
    small = {"train": 40, "test": 20, "probe": 30, "points": 32}
    return load_source(Component(name="shapes", **{**small, **settings}), 0)  # type: ignore[arg-type]  # extra keys are settings


def test_splits_are_balanced_and_of_different_shapes() -> None:
    dataset = load()
    assert dataset.train["points"].shape == (40, 32, 3)
    assert np.bincount(dataset.train["label"]).tolist() == [4] * 10
    assert set(dataset.server) == {"probe", "test"}
    assert len(dataset.server["probe"]) == 30
    assert dataset.server["test"].fingerprint == dataset.test.fingerprint
    assert dataset.test.fingerprint not in (dataset.train.select(np.arange(20)).fingerprint, "")


def test_sensors_are_domains() -> None:
    dataset = load(sensors=["clean", "noisy"])
    assert dataset.train.domain_names == ("clean", "noisy")
    assert np.bincount(dataset.train["domain"]).tolist() == [20, 20]
    pairs = set(zip(dataset.train["domain"].tolist(), dataset.train["label"].tolist(), strict=True))
    assert len(pairs) > 15, "the sensor says nothing of the family"


def test_the_seed_of_the_data_draws_them_and_the_runs_does_not() -> None:
    small = Component(name="shapes", train=20, test=10, probe=0, points=16)
    assert load_source(small, 0).fingerprint == load_source(small, 1).fingerprint
    assert load(data_seed=1).fingerprint != load().fingerprint
    assert "probe" not in load(probe=0).server
