from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedlab.method import ImageGrid, Plot, instance_overlay, label_overlay, save_picture, save_sheet, shown_of

pytestmark = pytest.mark.usefixtures("drawn_charts")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def contains(picture: np.ndarray, part: np.ndarray) -> bool:
    """Whether `part` occurs in `picture`, pixel for pixel."""
    height, width = part.shape[:2]
    corners = np.argwhere((picture == part[0, 0]).all(axis=2))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in corners)


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(3, 28, 28), (1, 28, 28), (3, 8, 8), (1, 40, 16), (3, 64, 64)]
)
def test_every_pixel_becomes_an_equal_square(tmp_path: Path, channels: int, height: int, width: int) -> None:
    image = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(1))
    path = save_picture(ImageGrid(image, 5, "Title", row_labels=("row",), column_labels=("c",)), tmp_path / "a.png")
    scale = max(1, round(56 / max(height, width)))
    raw = np.rint(image[0].expand(3, -1, -1).numpy() * 255).astype(int).transpose(1, 2, 0)
    assert contains(pixels(path), raw.repeat(scale, axis=0).repeat(scale, axis=1))


def test_images_go_row_by_row(tmp_path: Path) -> None:
    shades = torch.linspace(0, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)
    sheet = pixels(save_sheet(ImageGrid(shades, columns=3), tmp_path / "s.png"))
    assert sheet.shape == (5, 8, 3)
    assert sheet[0, [0, 3, 6], 0].tolist() == [0, 64, 128]
    assert sheet[3, [0, 3], 0].tolist() == [191, 255]
    assert (sheet[:, 2] == 255).all(), "a white line between columns"
    assert (sheet[3:, 6:] == 255).all(), "an empty place is white"


def test_a_magnified_sheet_is_the_sheet_with_larger_pixels(tmp_path: Path) -> None:
    grid = ImageGrid(torch.rand(4, 3, 3, 5), columns=2)
    small, large = pixels(save_sheet(grid, tmp_path / "1.png")), pixels(save_sheet(grid, tmp_path / "3.png", scale=3))
    assert np.array_equal(large, small.repeat(3, axis=0).repeat(3, axis=1))


def test_values_that_are_no_colors_are_clipped_and_nan_is_black(tmp_path: Path) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 7.0, -7.0]).reshape(5, 1, 1, 1).expand(5, 3, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = pixels(save_sheet(ImageGrid(values, columns=5), tmp_path / "s.png"))
        save_picture(ImageGrid(values, columns=5), tmp_path / "p.png")
    assert sheet[0, ::2, 0].tolist() == [0, 255, 0, 255, 0]


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_any_number_of_images_makes_a_picture(tmp_path: Path, count: int) -> None:
    path = save_picture(ImageGrid(torch.zeros(count, 1, 28, 28), 10, "Many"), tmp_path / "a.png")
    rows, columns = max(1, math.ceil(count / 10)), max(1, min(10, count))
    height, width = pixels(path).shape[:2]
    assert height >= rows * 58 - 2
    assert width >= columns * 58 - 2


def test_large_images_are_reduced(tmp_path: Path) -> None:
    grid = ImageGrid(torch.rand(40, 3, 224, 112), 10, "Large")
    assert pixels(save_picture(grid, tmp_path / "a.png")).shape[1] < 10 * 41 + 40


def test_labels_make_room_for_themselves_and_mean_what_they_say(tmp_path: Path) -> None:
    images = torch.zeros(2, 1, 28, 28)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = pixels(save_picture(ImageGrid(images, 1), tmp_path / "bare.png"))
        labeled = pixels(
            save_picture(
                ImageGrid(
                    images,
                    1,
                    "$\\frac{$ <b>",
                    row_labels=("a client with quite a long name", "$x^$ 日本"),
                    column_labels=("a class name that does not fit",),
                ),
                tmp_path / "labeled.png",
            )
        )
    assert labeled.shape[1] > bare.shape[1] + 150
    assert labeled.shape[0] > bare.shape[0] + 150, "the class name stands upright"
    for edge in (labeled[0], labeled[-1], labeled[:, 0], labeled[:, -1]):
        assert (edge == 255).all(), "nothing is cut off"


def test_equal_pictures_are_equal_files_and_a_plot_is_saved_as_drawn(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    grid = ImageGrid(torch.ones(1, 3, 4, 4) * 0.5, 1, "t")
    assert save_picture(grid, tmp_path / "a.png").read_bytes() == save_picture(grid, tmp_path / "b.png").read_bytes()
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    assert pixels(save_picture(Plot(figure), tmp_path / "c.png")).shape == (120, 240, 3)


def test_a_caption_says_where_a_picture_shows_only_some() -> None:
    assert shown_of(512, 1600, "images") == " About the first 512 of 1,600 images."
    assert shown_of(6, 40, "queries", "an even choice of") == " About an even choice of 6 of 40 queries."
    assert shown_of(12, 12, "images") == ""


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_colors_classes_and_leaves_the_unlabeled(channels: int) -> None:
    images = torch.full((1, channels, 4, 4), 0.25)
    shown = label_overlay(images, torch.tensor([[[0, 1], [2, -1]]]), 3, ink=1.0)
    assert shown.shape == (1, 3, 4, 4)
    corners = shown[0, :, ::2, ::2].flatten(1).T
    assert corners[0].tolist() == [0.5, 0.5, 0.5]
    assert corners[3].tolist() == [0.25, 0.25, 0.25]
    assert len({tuple(color.tolist()) for color in corners}) == 4
    half = label_overlay(images, torch.tensor([[[5, 1], [1, 1]]]), 3, ink=0.5)
    assert torch.equal(half[0, :, :2, :2], torch.full((3, 2, 2), 0.25))
    torch.testing.assert_close(half[0, :, 3, 3], 0.5 * corners[1] + 0.125)


def test_a_prompted_object_is_shown_in_four_columns() -> None:
    images = torch.full((2, 1, 12, 12), 0.5)
    similarity = torch.tensor([[[1.0, -1.0], [0.0, 0.5]]] * 2)
    truths = torch.zeros(2, 12, 12, dtype=torch.int64)
    truths[:, :6, :6], truths[:, 6:, 6:] = 1, -1
    points = torch.tensor([[3, 3], [11, 0]])
    grid = instance_overlay(images, points, similarity, similarity > 0.4, truths, row_labels=("a", "b"))
    assert grid.images.shape == (8, 3, 12, 12)
    assert grid.columns == len(grid.column_labels) == 4
    prompt, likeness, prediction, truth = grid.images[:4]
    red = (prompt == torch.tensor([1.0, 0.0, 0.0])[:, None, None]).all(0)
    assert sorted(map(tuple, red.nonzero().tolist())) == [(2, 3), (3, 2), (3, 3), (3, 4), (4, 3)]
    assert grid.images[4, :, 11, 0].tolist() == [1, 0, 0]  # in the corner, where only a part of the cross fits
    assert likeness[0, [0, 0, 6, 6], [0, 6, 0, 6]].tolist() == [1.0, 0.0, 0.5, 0.75]
    green = [(part[1] > 0.6) & (part[0] < 0.4) for part in (prediction, truth)]
    assert green[0][:6, :6].all()
    assert green[0][6:, 6:].all()
    assert int(green[0].sum()) == 72
    assert green[1][:6, :6].all()
    assert int(green[1].sum()) == 36
    assert (truth[:, 6:, 6:] == 0.5).all()
    assert grid.row_labels == ("a", "b")
