from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import Component
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.errors import DataError


def write(root: Path, *names: str) -> None:
    """Pictures whose pixels tell which file they are."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 9, 3), 10 * number + 5, np.uint8)).save(path)


def load(root: Path, **settings: Any) -> Dataset:
    return load_source(Component(name="folder", path=str(root), size=8, **settings), 0)


def test_classes_and_splits_are_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/dog/a.png", "train/cat/b.png", "train/cat/c.PNG", "test/dog/d.bmp", "test/ant/e.png")
    dataset = load(tmp_path)
    assert dataset.train.class_names == ("ant", "cat", "dog")
    assert dataset.train["label"].tolist() == [1, 1, 2]
    assert dataset.test["label"].tolist() == [0, 2]
    assert dataset.train["image"][:, 0, 0, 0].tolist() == [15, 25, 5]
    assert dataset.train["image"].shape == (3, 3, 8, 8)


def test_one_folder_is_split_by_class_whatever_the_runs_seed(tmp_path: Path) -> None:
    write(tmp_path, *[f"{kind}/{i}.png" for kind in ("a", "b") for i in range(10)])
    dataset = load(tmp_path, test_fraction=0.3)
    assert np.bincount(dataset.train["label"]).tolist() == [7, 7]
    assert np.bincount(dataset.test["label"]).tolist() == [3, 3]
    pixels = [set(part["image"][:, 0, 0, 0].tolist()) for part in (dataset.train, dataset.test)]
    assert len(pixels[0] | pixels[1]) == 20
    again = load_source(Component(name="folder", path=str(tmp_path), size=8, test_fraction=0.3), 5)
    assert again.fingerprint == dataset.fingerprint
    assert load(tmp_path, test_fraction=0.3, data_seed=1).fingerprint != dataset.fingerprint


def test_a_sub_folder_is_a_client(tmp_path: Path) -> None:
    write(tmp_path, "north/train/a/1.png", "north/test/a/2.png", "south/train/b/3.png", "south/test/a/4.png")
    dataset = load(tmp_path, clients=True, channels=1)
    assert dataset.train.domain_names == dataset.train.group_names == ("north", "south")
    assert dataset.train["group"].tolist() == dataset.train["domain"].tolist() == [0, 1]
    assert dataset.train["label"].tolist() == [0, 1]
    assert dataset.train["image"].shape == (2, 1, 8, 8)


def test_other_files_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.png", "test/a/2.png", "train/.thumbnails/3.png", "train/a/.4.png")
    (tmp_path / "train/a/notes.txt").write_text("x")
    assert len(load(tmp_path).train) == 1


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "unknown range"])
def test_an_unreadable_picture_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, "train/a/1.png", "train/a/bad.png", "test/a/2.png")
    bad = tmp_path / "train/a/bad.png"
    if damage == "unknown range":
        bad = bad.with_suffix(".tiff")
        Image.fromarray(np.zeros((4, 4), np.float32)).save(bad)
    else:
        bad.write_bytes({"truncated": bad.read_bytes()[:40], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match="bad") as caught:
        load(tmp_path)
    assert caught.value.key == "data.source.path"


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ([], "train images in"),
        (["train/a/1.png"], "a folder 'test' beside it"),
        (["test/a/1.png"], "a folder 'train' beside it"),
        (["1.png", "2.png"], "train images in"),
        (["a/1.png"], "test images in"),
        (["train/a/1.png", "test/1.png"], "test images in"),
    ],
)
def test_a_folder_of_another_form_is_refused(tmp_path: Path, files: list[str], hint: str) -> None:
    write(tmp_path, *files)
    with pytest.raises(DataError, match=hint):
        load(tmp_path)


def test_a_missing_folder_is_told_beforehand(tmp_path: Path) -> None:
    source = build_source(Component(name="folder", path=str(tmp_path / "gone")))
    assert "gone" in str(source.missing())
    with pytest.raises(DataError, match="gone"):
        source.load(0)
    (tmp_path / "gone").mkdir()
    assert source.missing() is None


def test_whole_folders_of_the_first_level_become_test_samples(tmp_path: Path) -> None:
    """As slides, whose tiles look so alike that a tile of a slide in training would give the others away."""
    slides = [f"slide-{number}" for number in range(4)]
    write(tmp_path, *(f"{slide}/{name}/{number}.png" for slide in slides for name in "ab" for number in range(3)))
    dataset = load(tmp_path, clients=True, whole_clients=True, test_fraction=0.5)
    names = dataset.train.group_names
    trained = {names[code] for code in dataset.train["group"]}
    tested = {names[code] for code in dataset.test["group"]}
    assert trained | tested == set(slides)
    assert not trained & tested
    assert (len(dataset.train), len(dataset.test)) == (12, 12)
    again = load(tmp_path, clients=True, whole_clients=True, test_fraction=0.5, data_seed=5)
    assert {names[code] for code in again.test["group"]} != tested
    for settings in ({"clients": False}, {"clients": True}):
        single = tmp_path / "single"
        write(single, "slide/a/1.png", "slide/b/2.png")
        with pytest.raises(DataError, match="at least two folders at the first level"):
            load(single, whole_clients=True, **settings)
