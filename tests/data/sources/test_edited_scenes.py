"""Edited scenes: pictures, queries and who owns what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.files.captions import decode
from fedlab.data.generated.edits import (
    ATTRIBUTES,
    COLORS,
    LENGTH,
    RELATIVE,
    WORDS,
    all_objects,
    edited,
    encoded,
    modifier,
    named_edits,
    relative_edits,
    words_of,
)
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source


def load(seed: int = 0, **settings: Any) -> Dataset:
    component = Component(name="edited_scenes", **{"train": 96, "test": 48, **settings})
    return build_source(component).load(seed)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load()


def test_clients_have_pictures_and_the_server_has_every_edit(data: Dataset) -> None:
    assert data.train["image"].shape == (96, 3, 32, 32)
    assert "text" not in data.train.columns
    assert {name: len(samples) for name, samples in data.server.items()} == {"gallery": 240, "queries": 1440}
    assert data.server["queries"]["text"].shape == (1440, 1, LENGTH)
    assert data.vocabulary == WORDS


def test_each_owner_lacks_one_color(data: Dataset) -> None:
    assert data.train.group_names == tuple(f"no {color}" for color in COLORS)
    for owner in range(4):
        seen = set(data.train["label"][data.train["group"] == owner].tolist())
        assert seen == set(range(4)) - {owner}


@pytest.mark.parametrize(("natural", "axis"), [("color", 0), ("shape", 1), ("place", 2)])
def test_owners_can_have_one_value_of_an_attribute(natural: str, axis: int) -> None:
    assert load(natural=natural).train.group_names == ATTRIBUTES[axis]


def test_targets_are_the_edited_objects_and_the_reference_is_not_ranked(data: Dataset) -> None:
    every, queries = all_objects(), data.server["queries"]
    for row in range(0, 1440, 37):
        source, target = every[queries["reference"][row] // 5], every[queries["targets"][row] // 5]
        assert (target == target[0]).all()
        assert int((source != target[0]).sum()) == 1
        axis = int(np.flatnonzero(source != target[0])[0])
        said = decode(queries["text"][row, 0].tolist(), data.vocabulary)
        new = target[0][axis]
        assert said in (f"but {ATTRIBUTES[axis][new]}", f"but {RELATIVE.get(axis)}")
        assert said == f"but {ATTRIBUTES[axis][new]}" or new == source[axis] ^ 1
        assert queries["removed"][row].tolist() == [queries["reference"][row]]
        assert queries["label"][row] == source[0]
        told = decode(queries["oracle"][row].tolist(), data.vocabulary)
        assert told == f"{' '.join(words_of(source.tolist()))} {said}"


def test_pictures_of_one_object_differ_and_gallery_and_training_share_none(data: Dataset) -> None:
    gallery = data.server["gallery"]["image"].reshape(240, -1)
    assert len(np.unique(gallery, axis=0)) == 240
    both = np.concatenate([gallery, data.train["image"].reshape(96, -1)])
    assert len(np.unique(both, axis=0)) == 336


def test_the_seed_of_the_data_is_the_runs_if_it_is_null() -> None:
    assert load(0).fingerprint == load(1).fingerprint
    assert load(0, data_seed=None).fingerprint != load(1, data_seed=None).fingerprint
    assert load(7, data_seed=None).fingerprint == load(0, data_seed=7).fingerprint


def test_a_color_that_is_painted_is_the_color_of_the_label(data: Dataset) -> None:
    channels = {0: (1, 0, 0), 1: (0, 1, 0), 2: (0, 0, 1), 3: (1, 1, 0)}
    for picture, color in zip(data.train["image"][:24], data.train["label"][:24], strict=True):
        brightest = picture.reshape(3, -1).max(axis=1) > 150
        assert tuple(brightest.astype(int)) == channels[int(color)]


def test_edits_change_one_attribute() -> None:
    assert len(list(named_edits((0, 1, 2)))) == 3 + 2 + 3
    assert [edited((0, 1, 2), edit) for edit in relative_edits()] == [(1, 1, 2), (0, 1, 3)]
    assert [modifier(edit) for edit in relative_edits()] == [("but", "inverted"), ("but", "mirrored")]
    assert edited((0, 1, 2), (2, 0)) == (0, 1, 0)
    assert modifier((0, 2)) == ("but", "blue")
    assert words_of((0, -1, 3), article=False) == ("red", "below")
    assert encoded([("a", "red")]).tolist() == [[1, 3, 5, 2, 0, 0, 0, 0]]


@pytest.mark.parametrize(("edits", "count"), [("named", 8), ("relative", 2), ("all", 10)])
def test_queries_can_ask_for_some_edits_only(edits: str, count: int) -> None:
    assert len(load(edits=edits, references=1).server["queries"]) == 48 * count
