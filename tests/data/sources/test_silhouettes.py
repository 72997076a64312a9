from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.generated.silhouettes import KINDS, STYLES, draw_silhouettes
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.errors import ConfigErrors
from fedlab.seeding import numpy_generator

SMALL: dict[str, Any] = {"train": 40, "test": 24, "teacher": 16, "probe": 8}


def load(seed: int = 0, **settings: Any) -> Dataset:
    return load_source(Component(name="silhouettes", **{**SMALL, **settings}), seed)


def drawn(style: str, count: int = 16, size: int = 24) -> np.ndarray:
    styles = np.full(count, STYLES.index(style))
    return draw_silhouettes(np.arange(count) % len(KINDS), styles, size, numpy_generator(0, style))


def test_splits_and_server_sets_are_balanced_and_have_no_image_in_common() -> None:
    dataset = load(styles=["photo", "sketch"])
    assert dataset.train["image"].shape == (40, 3, 24, 24)
    assert np.bincount(dataset.train["label"]).tolist() == [5] * 8
    assert np.bincount(dataset.train["domain"]).tolist() == [20, 20]
    assert dataset.train.domain_names == ("photo", "sketch")
    assert dataset.train.class_names == KINDS
    assert {name: len(samples) for name, samples in dataset.server.items()} == {"teacher": 16, "probe": 8, "test": 24}
    everything = [dataset.train, *dataset.server.values()]
    images = {image.tobytes() for samples in everything for image in samples["image"]}
    assert len(images) == sum(map(len, everything))


def test_only_the_seed_that_is_asked_for_changes_the_images() -> None:
    assert load(0).fingerprint == load(1).fingerprint
    assert load(data_seed=1).fingerprint != load().fingerprint
    assert load(0, data_seed=None).fingerprint != load(1, data_seed=None).fingerprint
    assert set(load(teacher=0, probe=0).server) == {"test"}


def test_styles_look_as_they_are_called() -> None:
    gray = drawn("gray")
    assert np.abs(gray - gray.mean(axis=1, keepdims=True)).max() < 0.35, "nothing but the noise has a color"
    assert drawn("sketch").mean() > 0.7
    photo, poster = drawn("photo"), drawn("poster")
    corners = [image[:, :, :3, :3].reshape(16, 3, -1).mean(2) for image in (photo, poster)]
    others = [image[:, :, -3:, -3:].reshape(16, 3, -1).mean(2) for image in (photo, poster)]
    far, near = (np.abs(a - b).mean() for a, b in zip(corners, others, strict=True))
    assert near < 0.06 < far, "the ground of a poster has one color"


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_every_kind_covers_a_part_of_its_image_wherever_it_lies(kind: int) -> None:
    labels, styles = np.full(12, kind), np.full(12, STYLES.index("sketch"))
    images = draw_silhouettes(labels, styles, 32, numpy_generator(0, "kind", kind))
    dark = (images.mean(axis=1) < 0.5).mean(axis=(1, 2))
    assert dark.min() > 0.01
    assert dark.max() < 0.35
    edge = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], axis=2)
    assert edge.mean() > 0.85, "it does not leave the image"


def test_silhouettes_are_in_all_places_and_turned() -> None:
    one = np.zeros(30, int) + KINDS.index("bar")
    images = draw_silhouettes(one, np.full(30, STYLES.index("sketch")), 24, numpy_generator(0, "turned"))
    ink = 0.92 - images.mean(axis=1)
    places = np.arange(24)
    across = (ink.sum(axis=1) * places).sum(axis=1) / ink.sum(axis=(1, 2))
    assert across.max() - across.min() > 3
    assert len({image.tobytes() for image in np.round(ink > 0.4)}) == 30


@pytest.mark.parametrize("wrong", [{"styles": []}, {"styles": ["gray", "gray"]}, {"size": 4}, {"train": 0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors):
        load(**wrong)
