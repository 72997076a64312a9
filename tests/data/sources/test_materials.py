"""Generated scenes of two-part objects: what they hold and that seeds decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.generated.materials import draw_patterns, draw_scenes
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.errors import ConfigErrors
from fedlab.seeding import numpy_generator

SMALL = {"train": 40, "test": 20, "validation": 8, "server_test": 12}


def load(seed: int = 0, **settings: Any) -> Dataset:
    return load_source(Component(name="materials", **{**SMALL, **settings}), seed)


def test_columns_agree_with_each_other() -> None:
    dataset = load()
    assert {name: len(part) for name, part in dataset.server.items()} == {"validation": 8, "test": 12}
    train = dataset.train
    assert train["image"].shape == (40, 1, 32, 32)
    inside = train["instances"][:, ::4, ::4].astype(bool)
    assert (train["instances"] == inside.repeat(4, axis=1).repeat(4, axis=2)).all()
    material = train["parts"] // 2
    assert (material[inside] == train["label"][:, None, None].repeat(8, 1).repeat(8, 2)[inside]).all()
    assert (material[~inside] == train["group"][:, None, None].repeat(8, 1).repeat(8, 2)[~inside]).all()
    assert (train["label"] != train["group"]).all()
    assert len(train.class_names) == len(train.group_names) == 6


def test_objects_are_rectangles_in_the_central_window_half_of_them_without_corners() -> None:
    scenes = draw_scenes(400, draw_patterns(6, numpy_generator(0, "p")), 0.25, numpy_generator(0, "s"))
    knocked, sizes = 0, set()
    for inside in scenes.objects[:, ::4, ::4].astype(bool):
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert min(rows[0], columns[0]) >= 1
        assert max(rows[-1], columns[-1]) <= 6
        height, width = len(rows), len(columns)
        sizes |= {height, width}
        missing = height * width - inside.sum()
        assert missing in (0, 4)
        knocked += missing == 4
    assert sizes == {3, 4, 5}
    assert 160 < knocked < 240
    # the two patterns of a material are equally frequent
    assert abs((scenes.parts % 2).mean() - 0.5) < 0.02


def test_patches_show_their_pattern_and_noise() -> None:
    patterns = draw_patterns(3, numpy_generator(0, "p"))
    scenes = draw_scenes(60, patterns, 0.25, numpy_generator(0, "s"))
    patches = scenes.pixels.reshape(60, 8, 4, 8, 4).transpose(0, 1, 3, 2, 4)
    assert (patches - patterns[scenes.parts]).std() == pytest.approx(0.25, rel=0.02)


def test_the_runs_seed_changes_nothing_and_the_datas_seed_patterns_and_scenes() -> None:
    assert load(seed=1).fingerprint == load(seed=2).fingerprint
    other = load(data_seed=1)
    assert load(seed=1, data_seed=None).fingerprint == other.fingerprint
    assert not np.array_equal(other.train["parts"], load().train["parts"])
    assert "validation" not in load(validation=0, server_test=0).server


def test_cameras_are_domains_with_less_contrast_and_more_noise() -> None:
    dataset, plain = load(cameras=2, noise=0.2), load(noise=0.2)
    assert dataset.train.domain_names == ("camera 1", "camera 2")
    first = dataset.train["domain"] == 0
    assert np.array_equal(dataset.train["image"][first], plain.train["image"][first])
    seen = dataset.train["image"][~first] - 0.5
    clean = 2 * (load(noise=0, cameras=2).train["image"][~first] - 0.5)
    assert np.array_equal(dataset.train["parts"], load(noise=0).train["parts"])
    slope = (seen * clean).sum() / (clean * clean).sum()
    assert slope == pytest.approx(0.5, abs=0.02)
    assert 10 * (seen - 0.5 * clean).std() == pytest.approx(2 * 0.2, rel=0.03)


@pytest.mark.parametrize("wrong", [{"materials": 1}, {"noise": -1}, {"cameras": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=next(iter(wrong))):
        load(**wrong)
