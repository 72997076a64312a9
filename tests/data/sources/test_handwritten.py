from __future__ import annotations

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.files.images import resize
from fedlab.data.generated import digits
from fedlab.data.sources import load_source
from fedlab.errors import ConfigErrors, DataError


def test_the_files_end_is_the_test_set() -> None:
    found = load_source(Component(name="handwritten"), seed=0)
    images, labels = digits.handwritten()
    assert (len(found.train), len(found.test)) == (1297, 500)
    assert found.train["image"].shape == (1297, 1, 16, 16)
    assert np.array_equal(found.test["label"], labels[1297:])
    assert np.array_equal(found.test["image"], resize(images[1297:], 16))
    assert found.train.class_names == tuple("0123456789")


def test_size_channels_and_split_are_settings_and_the_seed_is_not() -> None:
    wanted = Component(name="handwritten", size=8, channels=3, test_size=1000)
    first, second = (load_source(wanted, seed=seed) for seed in (0, 1))
    assert first.train["image"].shape == (797, 3, 8, 8)
    assert first.fingerprint == second.fingerprint


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="test_size"):
        load_source(Component(name="handwritten", test_size=1797), seed=0)
    with pytest.raises(ConfigErrors, match="channels"):
        load_source(Component(name="handwritten", channels=2), seed=0)
