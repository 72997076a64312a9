"""Masks of numbered instances, as DAVIS, VOC and COCO have them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import Component
from fedlab.data.samples import Dataset
from fedlab.data.sources import load_source
from fedlab.errors import DataError

NUMBERS = np.repeat(np.repeat(np.array([[0, 1], [3, 255]], np.uint16), 4, axis=0), 4, axis=1)


def write(root: Path, name: str, mask: Image.Image) -> None:
    for kind, picture in (("images", Image.new("RGB", mask.size, (len(name), 9, 9))), ("masks", mask)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        picture.save(root / kind / f"{name}.png")


def folder(root: Path, mask: Image.Image) -> Path:
    for part in ("train", "test"):
        for name in ("a", "bb"):
            write(root / part, name, mask)
    return root


def load(root: Path, **settings: Any) -> Dataset:
    return load_source(Component(name="masks", path=str(root), contents="instances", stride=1, **settings), 0)


def palette(numbers: np.ndarray) -> Image.Image:
    picture = Image.fromarray(numbers.astype(np.uint8), "L").convert("P")
    picture.putpalette([value % 256 for value in range(0, 768 * 7, 7)])
    return Image.fromarray(numbers.astype(np.uint8), "P") if picture.mode != "P" else picture


def colored(numbers: np.ndarray) -> Image.Image:
    values = numbers.astype(np.int64)
    return Image.fromarray(np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1).astype(np.uint8))


def test_numbers_are_those_of_the_file_and_void_is_apart(tmp_path: Path) -> None:
    dataset = load(folder(tmp_path, Image.fromarray(NUMBERS.astype(np.uint8))))
    found = dataset.train["instances"]
    assert found.shape == (2, 8, 8)
    assert found[0, ::4, ::4].tolist() == [[0, 1], [3, -1]]
    assert set(dataset.train.columns) == {"image", "instances"}
    assert dataset.train.class_names == ()
    (left,) = dataset.left_out
    assert (left.count, left.total) == (64, 256)
    assert "255" in left.why


def test_16_bits_and_colors_stand_for_large_numbers(tmp_path: Path) -> None:
    large = NUMBERS.astype(np.int64) * 300
    deep = load(folder(tmp_path / "deep", Image.fromarray((large % 65536).astype(np.uint16))), ignore=[76500 % 65536])
    assert deep.train["instances"][0, ::4, ::4].tolist() == [[0, 300], [900, -1]]
    colors = load(folder(tmp_path / "colors", colored(large)), ignore=[])
    assert colors.train["instances"][0, ::4, ::4].tolist() == [[0, 300], [900, 76500]]
    assert load(folder(tmp_path / "palette", palette(NUMBERS))).train["instances"][0, ::4, ::4].tolist() == [
        [0, 1],
        [3, -1],
    ]


def test_pictures_and_masks_are_reduced_alike(tmp_path: Path) -> None:
    dataset = load(folder(tmp_path, Image.fromarray(NUMBERS.astype(np.uint8))), size=[4, 4])
    assert dataset.train["image"].shape == (2, 3, 4, 4)
    assert dataset.train["instances"][0].tolist() == [[0, 0, 1, 1]] * 2 + [[3, 3, -1, -1]] * 2


def test_pictures_without_masks_are_used_and_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, Image.fromarray(NUMBERS.astype(np.uint8)))
    shutil.rmtree(root / "train" / "masks")
    (root / "test" / "masks" / "a.png").unlink()
    dataset = load(root)
    assert len(dataset.train) == 2
    assert (dataset.train["instances"] == -1).all()
    assert (dataset.test["instances"][0] == -1).all()
    unmarked, void = dataset.left_out
    assert (unmarked.what, unmarked.count) == ("images", 3)
    assert (void.count, void.total) == (16, 64)


@pytest.mark.parametrize("setting", [{"values": [0, 1]}, {"background": "0"}])
def test_settings_of_classes_are_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(setting))):
        load(folder(tmp_path, Image.fromarray(NUMBERS.astype(np.uint8))), **setting)


def test_masks_without_an_object_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no object"):
        load(folder(tmp_path, Image.fromarray(np.zeros((8, 8), np.uint8))))


def test_a_mask_of_another_size_or_kind_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, Image.fromarray(NUMBERS.astype(np.uint8)))
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(root / "test" / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: 6×8"):
        load(root)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(root / "test" / "masks" / "a.tiff")
    (root / "test" / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match="one number of an instance per pixel"):
        load(root)


@pytest.mark.parametrize("listed", [None, "ground\nwall\nperson\ncar\n"])
def test_masks_may_hold_classes_too_as_those_of_cityscapes(tmp_path: Path, listed: str | None) -> None:
    """Class 3 with the objects 0 and 7, and class 1 without objects."""
    numbers = np.repeat(np.repeat(np.array([[3000, 3007], [1, 255]], np.uint16), 4, axis=0), 4, axis=1)
    root = folder(tmp_path, Image.fromarray(numbers))
    if listed:
        (root / "classes.txt").write_text(listed, encoding="utf-8")
    train = load(root, class_divisor=1000).train
    assert train["instances"][0, ::4, ::4].tolist() == [[3000, 3007], [0, -1]]
    assert train["mask"][0, ::4, ::4].tolist() == [[3, 3], [1, -1]]
    assert train["label"].tolist() == [3, 3]
    assert train.class_names == (tuple(listed.split()) if listed else ("0", "1", "2", "3"))


def test_a_divisor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, Image.fromarray(NUMBERS.astype(np.uint8)))
    (root / "classes.txt").write_text("ground\nwall\n", encoding="utf-8")
    with pytest.raises(DataError, match="classes below 2"):
        load(root, class_divisor=1000)
    with pytest.raises(DataError, match="masks of instances"):
        load_source(Component(name="masks", path=str(root), class_divisor=1000), 0)
