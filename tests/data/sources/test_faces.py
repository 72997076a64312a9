"""The source of generated faces: whole videos, splits without common persons, united domains."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import load_source

SMALL = {"domains": 3, "pretrain": 5, "train": 6, "test": 8, "frames": 2, "server": 7}


def faces(seed: int = 0, **settings: object) -> Dataset:
    return load_source(Component(name="faces", **{**SMALL, **settings}), seed)


def videos(samples: Samples) -> list[np.ndarray]:
    return [np.flatnonzero(samples["group"] == video) for video in np.unique(samples["group"])]


def test_columns_and_numbers() -> None:
    data = faces()
    assert (len(data.train), len(data.test), len(data.server["faces"])) == (3 * (5 + 12), 3 * 16, 6)
    assert data.train["image"].dtype == data.train["regions"].dtype == np.uint8
    assert data.train["regions"].shape[1:] == (32, 32)
    assert data.train.class_names == ("fake", "real")
    assert data.train.domain_names == ("place 1", "place 2", "place 3")
    labeled = data.train["labeled"]
    assert labeled.sum() == 3 * 12
    assert (data.train["label"][~labeled] == 1).all()
    assert data.train["label"][labeled].mean() == data.test["label"].mean() == 0.5
    assert (data.server["faces"]["label"] == 1).all()
    assert data.left_out == ()


def test_a_video_is_whole_and_shows_one_person_of_one_split() -> None:
    data = faces()
    for samples in (data.train, data.test):
        for rows in videos(samples):
            assert (samples["frames"][rows] == len(rows)).all()
            assert len(set(samples["label"][rows])) == len(set(samples["domain"][rows])) == 1
    assert not set(data.train["group"]) & set(data.test["group"])


def test_the_faces_are_those_of_the_seed() -> None:
    assert faces(1).fingerprint == faces(2).fingerprint
    assert faces(data_seed=1).fingerprint != faces().fingerprint
    assert faces(1, data_seed=None).fingerprint == faces(data_seed=1).fingerprint
    assert faces(1, data_seed=None).fingerprint != faces(2, data_seed=None).fingerprint


def test_united_domains_hold_the_same_pictures_as_apart() -> None:
    apart, united = faces(), faces(unite=True)
    assert united.train.domain_names == ("all other places", "place 3")
    assert (apart.train["image"] == united.train["image"]).all()
    assert (united.train["domain"] == (apart.train["domain"] == 2)).all()
    assert faces(unite=True, domains=1).train.domain_names == ("place 1",)


@pytest.mark.parametrize("fake", ["eyes", "mouth"])
def test_kinds_of_fakes_differ_where_they_are_fake_only(fake: str) -> None:
    eyes, other = faces(frames=1), faces(frames=1, fake=fake)
    real = eyes.test["label"] == 1
    assert (eyes.test["image"][real] == other.test["image"][real]).all()
    assert (eyes.test["image"][~real] == other.test["image"][~real]).all() == (fake == "eyes")


def test_the_last_domain_can_have_more_test_videos_and_sets_may_be_empty() -> None:
    data = faces(last_test=20, pretrain=0, server=0, frames=1)
    assert np.bincount(data.test["domain"]).tolist() == [8, 8, 20]
    assert data.server == {}
    assert data.train["labeled"].all()
