"""Image and mask folders as users have them, and what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import Component
from fedlab.data.files.masks import dominant_class, nearest
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.errors import DataError

PIXELS = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 4, axis=0), 4, axis=1)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pair(root: Path, name: str, mask: np.ndarray = PIXELS, *, suffix: str = ".png") -> None:
    """An image whose gray tells its name, and its mask."""
    gray = sum(name.encode()) % 200
    save(root / "images" / f"{name}{suffix}", np.full((*mask.shape[:2], 3), gray, np.uint8))
    save(root / "masks" / f"{name}.png", mask)


def load(root: Path, **settings: Any) -> Dataset:
    return load_source(Component(name="masks", path=str(root), **settings), 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        pair(tmp_path / "train", name, suffix=".jpg" if name == "c" else ".png")
    pair(tmp_path / "test", "d")
    return tmp_path


def test_pairs_by_name_and_masks_at_a_quarter(root: Path) -> None:
    dataset = load(root)
    assert dataset.train["image"].shape == (3, 3, 8, 8)
    assert dataset.train["mask"].tolist() == [[[0, 1], [2, -1]]] * 3
    assert dataset.train.class_names == ("0", "1", "2")
    assert "domain" not in dataset.train.columns
    assert len(dataset.test) == 1


def test_one_folder_is_split_whatever_the_runs_seed(tmp_path: Path) -> None:
    for number in range(10):
        pair(tmp_path, f"x{number}")
    dataset = load(tmp_path, test_fraction=0.3)
    assert (len(dataset.train), len(dataset.test)) == (7, 3)
    again = load_source(Component(name="masks", path=str(tmp_path), test_fraction=0.3), 9)
    assert again.fingerprint == dataset.fingerprint
    assert load(tmp_path, test_fraction=0.3, data_seed=1).fingerprint != dataset.fingerprint


def test_sub_folders_are_domains_and_owners_and_the_server_has_sets_of_its_own(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for place in ("fog/x/1", "night/2"):
            pair(tmp_path / split, place)
    pair(tmp_path / "server" / "teacher", "9")
    dataset = load(tmp_path)
    assert dataset.train.domain_names == dataset.train.group_names == ("fog", "night")
    assert dataset.train["domain"].tolist() == dataset.test["group"].tolist() == [0, 1]
    assert set(dataset.server) == {"teacher"}
    assert dataset.server["teacher"].domain_names == ("all",)


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    pair(tmp_path / "elsewhere", "a")
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
            (tmp_path / split / kind / "fog").symlink_to(tmp_path / "elsewhere" / kind)
    assert load(tmp_path).train.domain_names == ("fog",)


def test_names_with_ends_of_their_own_pair_up(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split / "images" / "city" / "x_leftImg8bit.png", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / split / "images" / "city" / "note.png", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / split / "masks" / "city" / "x_gtFine_labelTrainIds.png", PIXELS)
        save(tmp_path / split / "masks" / "city" / "x_gtFine_color.png", np.zeros((8, 8, 3), np.uint8))
    dataset = load(tmp_path, image_suffix="_leftImg8bit", mask_suffix="_gtFine_labelTrainIds")
    assert len(dataset.train) == 1
    assert dataset.train["mask"].tolist() == [[[0, 1], [2, -1]]]


def test_colors_and_names_come_from_classes_txt(root: Path) -> None:
    (root / "classes.txt").write_text("open road 128 64 128\nsky 70 130 180\n\ntree 107 142 35\n")
    colors = np.zeros((8, 8, 3), np.uint8)
    colors[:4, :4], colors[:4, 4:], colors[4:, :4] = (128, 64, 128), (70, 130, 180), (107, 142, 35)
    save(root / "train" / "masks" / "a.png", colors)
    dataset = load(root, background="sky")
    assert dataset.train.class_names == ("open road", "sky", "tree")
    assert dataset.train["mask"].tolist() == [[[0, 1], [2, -1]]] * 3


def test_a_palette_png_is_a_mask_of_indices(root: Path) -> None:
    picture = Image.fromarray(PIXELS, mode="P")
    picture.putpalette([10, 20, 30] * 256)
    picture.save(root / "train" / "masks" / "a.png")
    assert load(root).train["mask"][0].tolist() == [[0, 1], [2, -1]]


def test_images_are_resized_and_masks_follow_by_nearest(root: Path) -> None:
    pair(root / "train", "wide", np.repeat(PIXELS, 2, axis=1))
    dataset = load(root, size=[16, 24], stride=4)
    assert dataset.train["image"].shape == (4, 3, 16, 24)
    assert dataset.train["mask"].shape == (4, 4, 6)
    assert set(np.unique(dataset.train["mask"])) == {-1, 0, 1, 2}


def test_nearest_takes_what_is_under_the_center_as_pillow_does() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 200, (13, 18))
    for size in ((4, 5), (13, 18), (26, 31)):
        pillow = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(nearest(mask, size), np.asarray(pillow))


def test_the_dominant_class_leaves_out_the_unlabeled_and_the_background() -> None:
    masks = np.array([[[0, 0, 0, 2]], [[-1, -1, -1, 1]], [[0, 0, 0, 0]], [[-1, -1, -1, -1]]])
    assert dominant_class(masks, 3).tolist() == [0, 1, 0, 0]
    assert dominant_class(masks, 3, background=0).tolist() == [2, 1, 0, 0]


# what is wrong with a folder


def lose_mask(root: Path) -> None:
    (root / "train" / "masks" / "b.png").unlink()


def other_mask_size(root: Path) -> None:
    save(root / "train" / "masks" / "b.png", PIXELS[:4])


def other_image_size(root: Path) -> None:
    pair(root / "train", "b", np.repeat(PIXELS, 2, axis=0))


def high_class(root: Path) -> None:
    (root / "classes.txt").write_text("a\nb\n")


def color_mask(root: Path) -> None:
    save(root / "train" / "masks" / "b.png", np.zeros((8, 8, 3), np.uint8))


def torn_mask(root: Path) -> None:
    (root / "train" / "masks" / "b.png").write_bytes(b"no picture")


def float_mask(root: Path) -> None:
    Image.fromarray(PIXELS).convert("LA").save(root / "train" / "masks" / "b.png")


def no_masks_folder(root: Path) -> None:
    (root / "test" / "masks").rename(root / "test" / "labels")


def train_alone(root: Path) -> None:
    (root / "test").rename(root / "rest")


def no_images(root: Path) -> None:
    (root / "test" / "images" / "d.png").rename(root / "test" / "images" / "d.txt")


def loose_image(root: Path) -> None:
    pair(root / "train", "fog/e")


def half_colored(root: Path) -> None:
    (root / "classes.txt").write_text("a 1 2 3\nb\n")


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (lose_mask, {}, r"b\.png.*\n.*its mask .*masks/b\.png"),
        (other_mask_size, {}, r"b\.png: 4×8'\n.*the size of its image, 8×8"),
        (other_image_size, {}, r"b\.png: 16×8'\n.*8×8 like the images before it\n.*data\.source\.size"),
        (high_class, {}, r"class 2'\n.*from 0 to 1.*\n.*data\.source\.ignore"),
        (color_mask, {}, r"b\.png: colors'\n.*class indices.*\n.*classes\.txt"),
        (torn_mask, {}, r"b\.png.*\n.*a readable mask"),
        (float_mask, {}, r"b\.png: uint8, shape \(8, 8, 2\)'\n.*one class index per pixel"),
        (no_masks_folder, {}, r"a folder masks/ in it"),
        (train_alone, {}, r"train and test side by side"),
        (no_images, {}, r"image files"),
        (loose_image, {}, r"a\.png.*\n.*a sub-folder, as other images are in 'fog'"),
        (half_colored, {}, r"2 names, 1 colors"),
        (lambda root: None, {"background": "sea"}, r"background = 'sea'\n.*one of 0, 1, 2"),
        (lambda root: None, {"ignore": []}, r"^$"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_said(root: Path, spoil: Any, settings: dict[str, Any], message: str) -> None:
    spoil(root)
    if message == r"^$":  # 255 is a class like any other then
        assert load(root, **settings).train.num_classes == 256
        return
    with pytest.raises(DataError, match=message):
        load(root, **settings)


def test_a_missing_folder_is_reported_without_loading(tmp_path: Path) -> None:
    source = build_source(Component(name="masks", path=str(tmp_path / "none")))
    assert "data.source.path" in (source.missing() or "")
    with pytest.raises(DataError, match="check the path"):
        source.load(0)


def test_too_few_images_for_a_test_part(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    with pytest.raises(DataError, match=r"test images\n.*test_fraction"):
        load(tmp_path)


# masks as people draw them


def white(root: Path, number: int = 4, value: int = 255) -> Path:
    """Masks of two values, as drawing programs make them."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6] = value
    for index in range(number):
        pair(root, f"x{index}", mask)
    return root


def test_black_and_white_masks_are_refused_and_following_the_advice_gives_two_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"128 of 256 pixels ignored[\s\S]*data\.source\.ignore") as caught:
        load(white(tmp_path, 5), stride=1, test_fraction=0.25)
    values = re.search(r"data\.source\.values: \[([\d, ]+)\]", caught.value.fix)
    assert values
    data = load(tmp_path, stride=1, values=[int(value) for value in values.group(1).split(",")])
    assert data.train.class_names == ("0", "255")
    assert np.unique(data.train["mask"], return_counts=True)[1].tolist() == [128, 128]
    assert data.left_out == ()


def test_values_go_with_names_and_refuse_others(tmp_path: Path) -> None:
    white(tmp_path, value=7)
    (tmp_path / "classes.txt").write_text("ground\nlesion\n")
    assert load(tmp_path, values=[0, 7]).train.class_names == ("ground", "lesion")
    with pytest.raises(DataError, match=r"x\d\.png: 7[\s\S]*data\.source\.values \(0, 9\)"):
        load(tmp_path, values=[0, 9])
    with pytest.raises(DataError, match="one value for each of the 2 classes"):
        load(tmp_path, values=[0, 7, 8])


@pytest.mark.parametrize("value", [0, 255])
def test_masks_that_tell_nothing_apart_are_refused(tmp_path: Path, value: int) -> None:
    for index in range(5):
        pair(tmp_path, f"x{index}", np.full((8, 8), value, np.uint8))
    with pytest.raises(DataError, match=r"at least two classes[\s\S]*data\.source\.ignore"):
        load(tmp_path)


def test_classes_txt_does_not_make_one_class_two(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ground\nlesion\n")
    with pytest.raises(DataError, match="train masks: ground, "):
        load(white(tmp_path))


def test_ignored_pixels_and_masks_without_any_label_are_counted(root: Path) -> None:
    pair(root / "train", "blank", np.full((8, 8), 255, np.uint8))
    found = {left.what: (left.count, left.total) for left in load(root).left_out}
    assert found["mask pixels"] == (3 + 4 + 1, 5 * 4)
    assert found["masks"] == (1, None)


def test_masks_are_found_whatever_their_lossless_ending_and_the_others_are_counted(tmp_path: Path) -> None:
    for index, ending in enumerate((".PNG", ".tif", ".bmp", ".png", ".png")):
        save(tmp_path / "images" / f"{index}.jpg", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / "masks" / f"{index}{ending}", PIXELS)
    save(tmp_path / "masks" / "spare.png", PIXELS)
    data = load(tmp_path)
    assert len(data.train) + len(data.test) == 5
    assert [left.examples for left in data.left_out if left.what == "files"] == [("masks/spare.png",)]


def test_a_smeared_mask_is_no_mask(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    save(tmp_path / "images" / "b.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "masks" / "b.jpg", PIXELS)
    with pytest.raises(DataError, match=r"b\.png[\s\S]*its mask"):
        load(tmp_path)


def test_names_of_classes_keep_their_own_spaces(root: Path) -> None:
    (root / "classes.txt").write_bytes("\ufeffopen\u00a0road\r\nsky\u2028line\r\ntree\r\n".encode())
    assert load(root).train.class_names == ("open\u00a0road", "sky\u2028line", "tree")
