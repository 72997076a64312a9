"""ShapeCap: what clients and server hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.config import Component, parse
from fedlab.data.files.captions import NEGATIVE, decode, kinds_of
from fedlab.data.generated.negatives import KINDS
from fedlab.data.partition.partition import make_steps, partition
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import build_source
from fedlab.data.sources.shapecap import ShapeCapSettings
from fedlab.errors import ConfigErrors

SMALL = {"train": 240, "test": 80, "composition": 40, "pretrain": 200, "zeroshot": 60}


def load(**settings: Any) -> Dataset:
    return build_source(Component(name="shapecap", **SMALL, **settings)).load(0)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load()


def captions(samples: Samples, data: Dataset, column: str = "text") -> list[str]:
    ids = samples[column].reshape(len(samples), -1, samples[column].shape[-1])[:, 0]
    return [decode(row, data.vocabulary) for row in ids.tolist()]


def test_columns_and_sizes(data: Dataset) -> None:
    assert len(data.train) == 240
    assert {name: len(samples) for name, samples in data.server.items()} == {
        "composition": 40, "pretrain": 200, "zeroshot": 60, "prompts": 24,
    }  # fmt: skip
    assert data.train["image"].shape == (240, 3, 32, 32)
    assert data.train["text"].shape == (240, 9)
    assert kinds_of(data.test.columns) == KINDS
    assert data.train[f"{NEGATIVE}swap_noun"].shape == (240, 1, 9)


def test_clients_never_see_the_unseen_colors(data: Dataset) -> None:
    for samples in (data.train, data.test, data.server["composition"]):
        for column in ("text", *(NEGATIVE + kind for kind in KINDS)):
            assert not any(word in text for text in captions(samples, data, column) for word in ("cyan", "magenta"))
    shown = {text.split()[1] for text in captions(data.server["prompts"], data)}
    assert shown == {"red", "green", "blue", "yellow", "cyan", "magenta"}
    names = data.server["zeroshot"].class_names
    assert {names[label].split()[0] for label in data.server["zeroshot"]["label"]} == {"cyan", "magenta"}


def test_pretraining_captions_never_require_binding(data: Dataset) -> None:
    texts = captions(data.server["pretrain"], data)
    colors = {"red", "green", "blue", "yellow", "cyan", "magenta"}
    singles = 0
    for text in texts:
        words = text.split()
        named = [word for word in words if word in colors]
        assert (len(named), "and" in words) in ((1, False), (2, True), (0, True))
        singles += len(named) == 1
    assert singles == 120


def test_tests_have_every_kind_and_training_the_kinds_it_may_use(data: Dataset) -> None:
    assert all(data.test[NEGATIVE + kind].any(axis=2).all() for kind in KINDS)
    assert all(data.train[NEGATIVE + kind].any(axis=2).all() for kind in KINDS[:-1])
    assert not data.train[f"{NEGATIVE}order"].any()
    some = load(scramble=0.5)
    reshuffled, ordered = (some.train[NEGATIVE + kind].any(axis=2)[:, 0] for kind in ("reshuffle", "order"))
    assert (reshuffled != ordered).all()
    assert 0.35 < ordered.mean() < 0.65


@pytest.mark.parametrize("natural", ["relation", "background"])
def test_scenes_can_be_single_objects_without_false_captions(natural: str) -> None:
    found = load(objects=1, natural=natural)
    assert not kinds_of(found.train.columns)
    for samples in (found.train, found.test, found.server["composition"], found.server["pretrain"]):
        texts = [text.split() for text in captions(samples, found)]
        assert all(len(text) == 4 and text[3] in ("left", "right", "above", "below") for text in texts)
    assert len(found.server["pretrain"]) == 200
    assert {text.split()[1] for text in captions(found.train, found)} == {"red", "green", "blue", "yellow"}
    grounds = found.train["image"][:, :, :2, :2].mean(axis=(2, 3)).max(axis=1)
    assert (grounds.max() > 60) == (natural == "background")


@pytest.mark.parametrize(
    ("natural", "names"),
    [
        ("relation", ["left of", "right of", "above", "below"]),
        ("axis", ["horizontal", "vertical"]),
        ("color", ["red", "green", "blue", "yellow"]),
        ("shape", ["square", "circle", "triangle", "cross"]),
        ("background", ["dark", "maroon", "forest", "navy"]),
    ],
)
def test_clients_can_differ_in_anything(natural: str, names: list[str]) -> None:
    found = load(natural=natural)
    parts = partition(found, make_steps([Component(name="natural")]), 0)
    assert list(parts.names) == names
    for name, part in zip(names, parts, strict=True):
        texts = [captions(found.train, found)[index] for index in part.train[:20]]
        if natural in ("relation", "color", "shape"):
            assert all(name in text for text in texts)
        if natural == "axis":
            assert all((("left" in text) or ("right" in text)) == (name == "horizontal") for text in texts)
    if natural == "background":
        brightness = [found.train["image"][part.train, :, :2, :2].mean(axis=(0, 2, 3)) for part in parts]
        assert [int(np.argmax(mean)) for mean in brightness[1:]] == [0, 1, 2]
        assert brightness[0].max() < 25


def test_the_data_depends_on_its_own_seed_only(data: Dataset) -> None:
    assert build_source(Component(name="shapecap", **SMALL)).load(7).fingerprint == data.fingerprint
    assert load(data_seed=1).fingerprint != data.fingerprint


@pytest.mark.parametrize("colors", [["pink"], [], ["red", "red"], ["red", "green", "blue", "yellow"]])
def test_impossible_colors_are_refused(colors: list[str]) -> None:
    with pytest.raises(ConfigErrors, match="unseen_colors"):
        parse(ShapeCapSettings, {"unseen_colors": colors})
