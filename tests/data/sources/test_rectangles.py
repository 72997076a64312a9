"""Generated pictures of rectangles: what they hold and that seeds decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.generated.rectangles import BACKGROUNDS, COLORS
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.errors import ConfigErrors
from fedlab.metrics.instances import objects_of

SMALL = {"train": 24, "test": 6, "server_test": 9}


def load(seed: int = 0, **settings: Any) -> Dataset:
    return load_source(Component(name="rectangles", **{**SMALL, **settings}), seed)


def test_four_rectangles_that_do_not_touch_and_two_of_one_color() -> None:
    dataset = load()
    assert (len(dataset.train), len(dataset.test), len(dataset.server["test"])) == (24, 6, 9)
    train = dataset.train
    assert train["image"].shape == (24, 3, 64, 64)
    for instances, classes, label in zip(train["instances"], train["mask"], train["label"], strict=True):
        objects = objects_of(instances)
        assert len(objects) == 4
        for mask in objects:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            sides = [len(rows), len(columns)]
            assert mask.sum() == sides[0] * sides[1]
            assert all(side % 4 == 0 and 12 <= side <= 24 for side in sides)
            assert min(rows[0], columns[0], 63 - rows[-1], 63 - columns[-1]) >= 4
            around = np.zeros_like(mask)
            around[rows[0] - 4 : rows[-1] + 5, columns[0] - 4 : columns[-1] + 5] = True
            assert (instances[around & ~mask] == 0).all()
        kinds = [np.unique(classes[mask]).tolist() for mask in objects]
        assert kinds[0] == kinds[1] == [label]
        assert len({kind for (kind,) in kinds}) == 3
        assert (classes[instances == 0] == 0).all()


def test_pixels_have_the_color_of_their_class_and_domain() -> None:
    train = load(noise=0.0).train
    assert train.class_names == ("background", *COLORS)
    assert set(train["domain"].tolist()) == {0, 1}
    for number, (ground, classes, image) in enumerate(zip(train["domain"], train["mask"], train["image"], strict=True)):
        table = np.array([list(BACKGROUNDS.values())[ground], *COLORS.values()])
        assert np.abs(image.transpose(1, 2, 0) - table[classes]).max() <= 0.03 + 1e-6, number


def test_seeds_decide() -> None:
    assert np.array_equal(load(0).train["image"], load(1).train["image"])
    assert not np.array_equal(load(data_seed=1).train["image"], load().train["image"])
    assert not np.array_equal(load(0, data_seed=None).train["image"], load(1, data_seed=None).train["image"])
    assert not np.array_equal(load().train["image"][:6], load().test["image"])


@pytest.mark.parametrize("wrong", [{"train": 0}, {"noise": -1}, {"shapes": 3}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors):
        load(**wrong)
