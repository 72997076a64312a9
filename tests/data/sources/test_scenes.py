"""Generated scenes: what they hold and that seeds decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.files.masks import dominant_class
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.data.sources.scenes import CLASSES, draw_scenes
from fedlab.errors import ConfigErrors
from fedlab.seeding import numpy_generator

SMALL = {"train": 10, "test": 6, "teacher": 4, "server_test": 3, "size": 32}


def load(seed: int = 0, **settings: Any) -> Dataset:
    return load_source(Component(name="scenes", **{**SMALL, **settings}), seed)


def test_masks_are_a_quarter_of_the_images_and_the_server_has_its_own() -> None:
    dataset = load()
    sizes = {"train": 10, "test": 6, "teacher": 4}
    parts = {"train": dataset.train, "test": dataset.test, "teacher": dataset.server["teacher"]}
    for name, count in sizes.items():
        assert parts[name]["image"].shape == (count, 3, 32, 32)
        assert parts[name]["image"].dtype == np.uint8
        assert parts[name]["mask"].shape == (count, 8, 8)
        assert parts[name].class_names == CLASSES
    assert len(dataset.server["test"]) == 3
    every = (*parts.values(), dataset.server["test"])
    images = np.concatenate([part["image"].reshape(len(part), -1) for part in every])
    assert len(np.unique(images, axis=0)) == 23


def test_the_runs_seed_changes_nothing_and_the_datas_seed_everything() -> None:
    assert load(seed=1).fingerprint == load(seed=2).fingerprint
    assert load(data_seed=1).fingerprint != load().fingerprint
    assert "teacher" not in load(teacher=0, server_test=0).server


def test_every_shape_occurs_and_the_label_is_the_largest() -> None:
    _, masks = draw_scenes(40, 64, numpy_generator(0, "test"))
    assert set(np.unique(masks)) == set(range(5))
    labels = dominant_class(masks, 5, background=0)
    for mask, label in zip(masks, labels, strict=True):
        counts = np.bincount(mask.ravel(), minlength=5)[1:]
        assert counts[label - 1] == counts.max()


def test_color_alone_does_not_tell_shapes_from_background() -> None:
    """A nearest-color guess from the class means is far from the truth."""
    images, masks = draw_scenes(40, 64, numpy_generator(0, "test"))
    pixels, truth = images.transpose(0, 2, 3, 1).reshape(-1, 3), masks.ravel()
    means = np.stack([pixels[truth == k].mean(axis=0) for k in range(5)])
    guess = ((pixels[:, None] - means) ** 2).sum(-1).argmin(1)
    ious = [((guess == k) & (truth == k)).sum() / ((guess == k) | (truth == k)).sum() for k in range(5)]
    assert np.mean(ious) < 0.45


def test_conditions_are_domains_of_even_size_over_the_same_scenes() -> None:
    conditions = ("clear", "fog", "night", "rain", "snow")
    dataset, clear = load(conditions=conditions), load()
    assert dataset.train.domain_names == conditions
    assert np.bincount(dataset.train["domain"]).tolist() == [2] * 5
    assert np.array_equal(dataset.train["mask"], clear.train["mask"])
    brightness = [dataset.train["image"][dataset.train["domain"] == k].mean() for k in range(5)]
    assert brightness[2] < 0.5 * brightness[0] < 0.5 * brightness[4]
    same = dataset.train["domain"] == 0
    assert np.array_equal(dataset.train["image"][same], clear.train["image"][same])
    assert all((dataset.train["image"][~same] != clear.train["image"][~same]).reshape(8, -1).any(axis=1))


@pytest.mark.parametrize(
    "wrong", [{"size": 33}, {"stride": 3}, {"conditions": []}, {"conditions": ["fog", "fog"]}, {"conditions": ["hail"]}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=next(iter(wrong))):
        load(**wrong)
