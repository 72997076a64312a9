from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.files.images import resize
from fedlab.data.generated import digits
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.errors import ConfigErrors, DataError


def load(seed: int = 0, **settings: Any) -> Dataset:
    return load_source(Component(name="noisy_digits", **settings), seed)


def test_without_noise_and_moves_they_are_scikit_learns_digits() -> None:
    found, (images, labels) = load(noise=[0.0]), digits.handwritten()
    assert (len(found.train), len(found.test)) == (1297, 500)
    assert np.array_equal(found.train["image"], images[:1297])
    assert np.array_equal(found.test["image"], images[1297:])
    assert np.array_equal(found.test["label"], labels[1297:])
    assert found.train.class_names == tuple("0123456789")
    larger = load(noise=[0.0], size=16, train_size=20, test_size=100)
    assert np.array_equal(larger.train["image"], resize(images[:20], 16))
    assert np.array_equal(larger.test["image"], resize(images[1697:], 16))


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    images, _ = digits.handwritten()
    # pixels at the edge are clipped, so those of a middle gray are looked at
    for level in (0.05, 0.1):
        noisy, clean = load(noise=[level]).test["image"], images[1297:]
        middle = (clean > 0.45) & (clean < 0.55)
        assert np.std((noisy - clean)[middle]) == pytest.approx(level, rel=0.05)


def test_every_copy_has_noise_and_a_move_of_its_own() -> None:
    found = load(noise=[0.1], train_copies=3, shift=1, train_size=30).train
    assert len(found) == 90
    first, second, third = np.split(found["image"], 3)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert np.array_equal(found["label"], np.tile(digits.handwritten()[1][:30], 3))


def test_moves_go_in_all_directions_by_whole_pixels_and_bring_in_black() -> None:
    dot = np.zeros((1, 1, 7, 7), np.float32)
    dot[0, 0, 3, 3] = 1
    moved = digits.noisy_copies(dot, 400, 2, np.zeros(400), np.random.default_rng(0))
    assert set(np.unique(moved)) == {0, 1}
    assert (moved.sum(axis=(1, 2, 3)) == 1).all()
    _, _, rows, columns = np.nonzero(moved)
    assert {(r - 3, c - 3) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)} == {
        (down, right) for down in range(-2, 3) for right in range(-2, 3)
    }


def test_each_strength_of_noise_is_a_domain() -> None:
    found = load(noise=[0.0, 0.3])
    assert found.train.domain_names == ("noise 0", "noise 0.3")
    assert np.bincount(found.train["domain"]).tolist() == [649, 648]
    images, _ = digits.handwritten()
    same = (found.test["image"] == images[1297:]).all(axis=(1, 2, 3))
    assert np.array_equal(same, found.test["domain"] == 0)


def test_the_runs_seed_draws_the_noise_only_if_there_is_no_data_seed() -> None:
    assert load(0).fingerprint == load(1).fingerprint
    assert load(0, data_seed=None).fingerprint != load(1, data_seed=None).fingerprint
    assert load(3, data_seed=None).fingerprint == load(0, data_seed=3).fingerprint
    split = load()
    assert not np.array_equal(split.train["image"][0], split.test["image"][0])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(DataError, match="test_size"):
        load(test_size=1797)
    with pytest.raises(DataError, match="train_size"):
        load(train_size=1298)
    for wrong in ({"noise": []}, {"noise": [-0.1]}, {"train_copies": 0}, {"shift": -1}):
        with pytest.raises(ConfigErrors, match=next(iter(wrong))):
            load(**wrong)
