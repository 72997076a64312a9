"""Pictures that a method returns for the report: grids of images and matplotlib figures."""

from __future__ import annotations

import colorsys
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.storage.runfolder import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_DPI, _FONT = 120, 9
_LONGEST = 44  # characters of a label; of a longer one both ends are kept
_CELL, _LARGEST = 56, 80  # pixels of an image's longer side: the size to scale to, and the largest that is drawn
_WIDEST = 60  # characters of a bar's name
_LOOKS = {"good": "#2a7f4f", "bad": "#c0392b", "plain": "#9aa5b1"}
_LINE, _PAD = 24, 8  # pixels: height of a line of text, and distance between neighbors


@dataclass(frozen=True)
class ImageGrid:
    """Images in rows and columns, filled row by row.

    Args:
        images: (n, C, H, W) with values in [0, 1] and 1 or 3 channels.
        columns: number of images in a row.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
        row_labels: one label for each row, or none.
        column_labels: one label for each column, or none.
    """

    images: Tensor
    columns: int
    title: str = ""
    caption: str = ""
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure with a title and a caption.

    Args:
        figure: the figure. It has to be made without pyplot, which would keep it in memory.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
    """

    figure: Figure
    title: str = ""
    caption: str = ""


Picture = ImageGrid | Plot


def shown_of(shown: int, total: int, things: str, which: str = "the first") -> str:
    """Return a sentence for a caption that says how many things a picture shows; an empty string if it shows all.

    Args:
        shown: number of things that the picture shows or is about.
        total: number of things that there are.
        things: the things, as a plural noun.
        which: the words before the number, which say how the things were chosen.
    """
    return f" About {which} {shown:,} of {total:,} {things}." if shown < total else ""


def heatmaps(
    maps: Tensor,
    *,
    title: str = "",
    caption: str = "",
    row_labels: tuple[str, ...] = (),
    column_labels: tuple[str, ...] = (),
) -> Plot:
    """Draw maps of numbers, such as spectrograms, in rows and columns. All maps of a row have one scale of colors.

    Args:
        maps: (rows, columns, H, W) with values of any size; NaN is drawn as 0.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
        row_labels: one label for each row, or none.
        column_labels: one label for each column, or none.
    """
    from matplotlib import rc_context, rcdefaults
    from matplotlib.figure import Figure

    values = torch.nan_to_num(maps.detach().cpu().float()).numpy()
    rows, columns, height, width = values.shape
    wide = 8.0 / columns
    with rc_context():
        rcdefaults()
        tall = max(0.6, min(wide * height / width, wide)) * rows + 0.4
        figure = Figure(figsize=(8.4, tall))
        figure.subplots_adjust(0.04, 0.05 / tall, 0.99, 1 - 0.3 / tall, wspace=0.03, hspace=0.06)
        places = figure.subplots(rows, columns, squeeze=False)
        for row, column in np.ndindex(rows, columns):
            place: Any = places[row, column]
            low, high = float(values[row].min()), float(values[row].max())
            place.imshow(values[row, column], cmap="magma", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
            place.set(xticks=[], yticks=[])
            if row == 0 and column < len(column_labels):
                place.set_title(column_labels[column], fontsize=_FONT, parse_math=False)
            if column == 0 and row < len(row_labels):
                place.set_ylabel(_fitting(row_labels[row], 32), fontsize=_FONT, parse_math=False)
    return Plot(figure, title, caption)


def label_overlay(images: Tensor, masks: Tensor, num_classes: int, ink: float = 0.6) -> Tensor:
    """Lay the classes of masks over images, with one color for each class.

    The first class is gray, because it is usually the background, whose color would dominate the others.

    Args:
        images: (n, C, H, W) with values in [0, 1] and 1 or 3 channels.
        masks: (n, h, w) class indices, resized to the images with nearest-neighbor interpolation. Pixels with an index
            outside 0…K−1 stay as they are.
        num_classes: K.
        ink: share of the class's color in the color of a pixel, from 0 to 1.

    Returns:
        (n, 3, H, W) on the CPU.
    """
    hues = [colorsys.hsv_to_rgb(k / num_classes, 0.9, 1.0) for k in range(num_classes - 1)]
    palette = torch.tensor([(0.5, 0.5, 0.5), *hues])
    shown, full = images.detach().cpu().expand(-1, 3, -1, -1), masks.detach().cpu()[:, None].float()
    full = F.interpolate(full, size=images.shape[2:], mode="nearest")[:, 0].long()
    known = ((full >= 0) & (full < num_classes))[:, None]
    colors = palette[full.clamp(0, num_classes - 1)].permute(0, 3, 1, 2)
    return torch.where(known, (1 - ink) * shown + ink * colors, shown)


def instance_overlay(
    images: Tensor,
    points: Tensor,
    similarity: Tensor,
    predictions: Tensor,
    truths: Tensor,
    *,
    title: str = "",
    caption: str = "",
    row_labels: tuple[str, ...] = (),
) -> ImageGrid:
    """Show segmentations by a prompt: picture and prompt, similarity to the prompt, prediction, and truth.

    Args:
        images: (n, C, H, W) with values in [0, 1] and 1 or 3 channels.
        points: (n, 2) row and column of the prompted pixel, which gets a red cross.
        similarity: (n, h, w); in each picture, the least similar place is black and the most similar one white.
        predictions: (n, h, w) truth values, laid over the picture in green.
        truths: (n, h', w') integers: 1 is the object, in green; −1 is void, in gray; everything else stays as it is.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
        row_labels: one label for each row, or none.
    """
    size = images.shape[2:]
    pictures = images.detach().cpu().float().expand(-1, 3, -1, -1)
    marked = pictures.clone()
    for picture, (row, column) in zip(marked, points.tolist(), strict=True):
        reach = max(1, min(size) // 12)
        for rows, columns in (
            (slice(row, row + 1), slice(max(0, column - reach), column + reach + 1)),
            (slice(max(0, row - reach), row + reach + 1), slice(column, column + 1)),
        ):
            picture[:, rows, columns] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]

    def enlarged(maps: Tensor) -> Tensor:
        return F.interpolate(maps.detach().cpu().float()[:, None], size=size, mode="nearest")

    least, most = (bound[:, None, None] for bound in torch.aminmax(similarity.detach().float().flatten(1), dim=1))
    likeness = enlarged((similarity - least) / (most - least).clamp(min=1e-6))
    truth, ink = enlarged(truths), torch.tensor([0.1, 0.9, 0.3])[:, None, None]
    shown = (
        marked,
        likeness.expand(-1, 3, -1, -1),
        torch.where(enlarged(predictions) > 0, 0.4 * pictures + 0.6 * ink, pictures),
        torch.where(truth == 1, 0.4 * pictures + 0.6 * ink, torch.where(truth < 0, torch.tensor(0.5), pictures)),
    )
    return ImageGrid(
        torch.stack(shown, dim=1).flatten(0, 1), 4, title, caption, row_labels,
        ("prompt", "similarity", "prediction", "truth"),
    )  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A bar of a bar chart.

    Args:
        name: label beside the bar.
        value: length of the bar.
        look: color of the bar: ``good`` is green, ``bad`` is red and ``plain`` is gray.
        mark: a value at which a line is drawn across the bar, such as the accuracy of chance; None for no line.
    """

    name: str
    value: float
    look: Literal["good", "bad", "plain"] = "plain"
    mark: float | None = None


def bar_chart(bars: Sequence[Bar], *, axis: str, most: float | None = None, title: str = "", caption: str = "") -> Plot:
    """Draw horizontal bars, with the value of each rounded to a whole number beside it.

    Args:
        bars: the bars, from top to bottom.
        axis: label of the axis, which says what the values are.
        most: the largest possible value, so that charts can be compared; by default, matplotlib chooses the limits.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.36 * len(bars) + 0.9), layout="constrained")
    chart = figure.subplots()
    chart.bar_label(_draw_bars(chart, bars, 9), fmt="%.0f", padding=3, fontsize=8)
    if most is not None:
        chart.set_xlim(0, 1.08 * most)  # leaves room for the numbers beside the bars
    chart.set_xlabel(axis, fontsize=8)
    return Plot(figure, title, caption)


def images_with_bars(
    images: Tensor, rows: Sequence[Sequence[Bar]], *, axis: str, title: str = "", caption: str = ""
) -> Plot:
    """Draw images one below the other, each with bars beside it, such as the probabilities of classes.

    Args:
        images: (n, C, H, W) with values in [0, 1] and 1 or 3 channels.
        rows: the bars of each image, from top to bottom.
        axis: label of the axis, which says what the values are.
        title: title above the picture.
        caption: one sentence, which the report shows below the picture.
    """
    from matplotlib.figure import Figure

    heights = [max(4, len(row)) for row in rows]
    figure = Figure(figsize=(9.5, 0.24 * sum(heights) + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(1, 3.2), height_ratios=heights)
    for (picture, chart), image, row in zip(axes, images.detach().cpu().float(), rows, strict=True):
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy()
        picture.imshow(pixels, interpolation="nearest")
        picture.set_axis_off()
        _draw_bars(chart, row, 7.5)
    axes[-1][1].set_xlabel(axis, fontsize=8)
    return Plot(figure, title, caption)


def _draw_bars(chart: Any, bars: Sequence[Bar], size: float) -> Any:
    names = [_fitting(bar.name, _WIDEST) for bar in bars]
    drawn = chart.barh(range(len(bars)), [bar.value for bar in bars], height=0.7, color=[_LOOKS[b.look] for b in bars])
    for place, bar in enumerate(bars):
        if bar.mark is not None:
            chart.plot([bar.mark, bar.mark], [place - 0.45, place + 0.45], color="black", linewidth=1.2)
    chart.set_yticks(range(len(bars)), names, fontsize=size, parse_math=False)
    chart.invert_yaxis()
    chart.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        chart.spines[side].set_visible(False)
    return drawn


def save_picture(picture: Picture, path: Path) -> Path:
    """Write a picture with its labels as PNG, and return `path`."""
    figure = _figure_of(picture) if isinstance(picture, ImageGrid) else picture.figure
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    write_atomic(path, buffer.getvalue())
    return path


def save_sheet(grid: ImageGrid, path: Path, scale: int = 1) -> Path:
    """Write the images of a grid as PNG, without title and labels, and return `path`. White lines separate the images.

    Args:
        grid: the images.
        path: the file to write.
        scale: each pixel of an image becomes a square with this many pixels on a side.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_mosaic(grid, scale)).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
    return path


def _shape(grid: ImageGrid) -> tuple[int, int]:
    """Number of rows and columns. A grid without images has one row and one column."""
    columns = max(1, min(grid.columns, len(grid.images)))
    return max(1, -(-len(grid.images) // columns)), columns


def _mosaic(grid: ImageGrid, scale: int) -> np.ndarray:
    """The grid as one picture, (height, width, 3) uint8, in which each pixel of an image is a square of `scale` pixels.

    Values outside [0, 1] are clipped and NaN is black, because a picture of a run that diverged must not end the run.
    """
    images = torch.nan_to_num(grid.images.detach().cpu().float(), nan=0.0).clamp(0, 1)
    pixels = np.rint(images.numpy() * 255).astype(np.uint8)
    if pixels.shape[1] != 3:
        pixels = pixels[:, :1].repeat(3, axis=1)
    _, _, height, width = pixels.shape
    rows, columns = _shape(grid)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def _figure_of(grid: ImageGrid) -> Figure:
    """The grid as a figure with title and labels. Images are placed pixel by pixel, so that small ones stay sharp."""
    from matplotlib import rc_context, rcdefaults
    from matplotlib.figure import Figure

    grid = replace(grid, images=_reduced(grid.images))
    height, width = grid.images.shape[2:]
    scale = max(1, round(_CELL / max(height, width)))
    sheet, (rows, columns) = _mosaic(grid, scale), _shape(grid)
    down, right = (height + 1) * scale, (width + 1) * scale
    with rc_context(), warnings.catch_warnings():
        rcdefaults()
        # Labels come from the data. They may be in any script, and a $ in one does not begin a formula.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(dpi=_DPI)

        def write(text: str, size: float = _FONT) -> Text:
            return figure.text(0, 0, _fitting(text, _LONGEST), fontsize=size, parse_math=False, va="center")

        title = figure.text(0, 0, grid.title, fontsize=_FONT + 1, parse_math=False, va="center")
        beside = [write(name) for name in grid.row_labels[:rows]]
        under = [write(name) for name in grid.column_labels[:columns]]
        upright = max(map(_width, under), default=0) > right
        inset = _PAD + (max(map(_width, beside)) + _PAD if beside else 0)
        above = _PAD + (_LINE if grid.title else 0)
        below = _PAD + (max(map(_width, under)) + _PAD if upright else _LINE if under else 0)
        total_width = inset + max(sheet.shape[1], _width(title)) + _PAD
        total_height = above + sheet.shape[0] + below
        figure.set_size_inches(total_width / _DPI, total_height / _DPI)
        figure.figimage(sheet, inset, below)

        def place(text: Text, left: float, top: float, **look: Any) -> None:
            text.set(position=(left / total_width, 1 - top / total_height), **look)

        place(title, inset, _PAD + _LINE / 2 - 2)
        for row, text in enumerate(beside):
            place(text, inset - _PAD, above + row * down + height * scale / 2, ha="right")
        foot = above + sheet.shape[0]
        for column, text in enumerate(under):
            middle = inset + column * right + width * scale / 2
            if upright:
                place(text, middle, foot + _PAD, ha="center", va="top", rotation=90)
            else:
                place(text, middle, foot + _PAD + _LINE / 2 - 2, ha="center")
    return figure


def _reduced(images: Tensor) -> Tensor:
    """Images whose longer side is at most 80 pixels; larger ones are scaled down."""
    side = max(images.shape[2:])
    if side <= _LARGEST or not len(images):
        return images
    height, width = (max(1, round(length * _LARGEST / side)) for length in images.shape[2:])
    return F.interpolate(images.detach().float(), size=(height, width), mode="area")


def _fitting(text: str, most: int) -> str:
    """A label of at most so many characters. Both ends are kept, because names often differ at their ends."""
    kept = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - kept]}…{text[-kept:]}"


def _width(text: Text) -> int:
    return math.ceil(text.get_window_extent().width)
