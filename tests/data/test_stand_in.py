"""Random samples have the shape and kind of those that a source would have loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.classes import plausible
from fedlab.data.sources import SOURCES, build_source
from fedlab.data.stand_in import Draws, Wanted, loaded_or_random
from fedlab.errors import DataError
from tests.data.brought import BUILDERS

SILENT = {"npz"}  # nothing but the missing file says what its samples are like
SETTINGS = {
    "masks": {"size": [8, 8]},
    "captions": {"length": 7},
    "points": {"points": 5},
}
WANTED = Wanted(train=48, test=16, server=6, classes=3, domains=2, words=30)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in SILENT])
def test_random_samples_are_like_those_that_would_be_loaded(name: str, tmp_path: Path) -> None:
    made = BUILDERS[name](tmp_path / "data")
    component = Component(**{**made.component.model_dump(), **SETTINGS.get(name, {})})
    source = build_source(component)
    loaded = source.load(0)
    shutil.rmtree(tmp_path / "data")
    assert source.missing()
    random = loaded_or_random(source, name, "data.source.name", WANTED, 0)
    plausible(random, getattr(source, "held_out_classes", False))
    drawn = random.train.columns
    for column, values in loaded.train.columns.items():
        if column in drawn:
            assert (drawn[column].dtype, drawn[column].shape[1:]) == (values.dtype, values.shape[1:]), column
    assert loaded.train.columns.keys() - drawn.keys() <= {"domain", "group"}
    assert len(random.train) == 48
    assert loaded.server.keys() <= random.server.keys()
    for held, samples in loaded.server.items():
        assert random.server[held].columns.keys() >= samples.columns.keys(), held
    # equal draws, so that a rehearsal can be repeated
    assert loaded_or_random(source, name, "", WANTED, 0).fingerprint == random.fingerprint


@pytest.mark.parametrize("name", BUILDERS)
def test_data_that_is_here_is_loaded(name: str, tmp_path: Path) -> None:
    made = BUILDERS[name](tmp_path / "data")
    found = loaded_or_random(build_source(made.component), name, "data.source.name", WANTED, 0)
    assert found.fingerprint == made.load().fingerprint


def test_a_source_that_cannot_say_what_is_missing_is_named(tmp_path: Path) -> None:
    source = build_source(Component(name="npz", path=str(tmp_path / "none.npz")))
    with pytest.raises(DataError, match=r"npz has no stand_in\(wanted\)") as caught:
        loaded_or_random(source, "npz", "data.source.name", WANTED, 0)
    assert "none.npz" in caught.value.fix


def test_masks_whose_size_only_the_images_would_say_are_refused(tmp_path: Path) -> None:
    source = build_source(Component(name="masks", path=str(tmp_path / "none")))
    with pytest.raises(DataError, match=r"data\.source\.size"):
        loaded_or_random(source, "masks", "data.source.name", WANTED, 0)


def test_the_sets_that_the_server_holds_are_made_if_they_are_named(tmp_path: Path) -> None:
    source = build_source(Component(name="masks", path=str(tmp_path / "none"), size=[16, 8]))
    held = loaded_or_random(source, "masks", "", Wanted(server=5, held=("teacher",)), 0).server
    assert held.keys() == {"teacher"}
    assert held["teacher"]["mask"].shape == (5, 4, 2)


def test_people_have_several_pictures_under_two_cameras(tmp_path: Path) -> None:
    component = Component(
        name="market", sources={"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}, height=4, width=2
    )
    train = loaded_or_random(build_source(component), "market", "", Wanted(train=64, classes=100), 0).train
    assert train.num_classes == 100
    people, counts = np.unique(train["label"], return_counts=True)
    assert counts.min() >= 8
    for person in people:
        of = train["label"] == person
        assert len(set(train["camera"][of])) == 2
        assert len(set(train["domain"][of])) == 1


def test_every_kind_is_dealt_equally_and_captions_end() -> None:
    draws = Draws(Wanted(train=30, classes=3, words=20), "train")
    assert np.bincount(draws.label()).tolist() == [10, 10, 10]
    assert (np.diff(draws.label()) != 1).any()
    ids = draws.captions(6, 2)
    assert ids.shape == (30, 2, 6)
    assert (ids[..., -1] == 19).all()
    assert ids[..., :-1].min() >= 1
    assert ids[..., :-1].max() < 19
    assert Wanted(words=20).vocabulary[19] == "<|endoftext|>"


def test_every_source_of_files_has_random_samples_but_one() -> None:
    with_them = {name for name in SOURCES.builtin if hasattr(SOURCES.find(name), "stand_in")}
    assert BUILDERS.keys() - SILENT <= with_them
    assert not SILENT & with_them
