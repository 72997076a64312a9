"""Pictures a method hands over: grids of images, and any matplotlib figure."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fedlab.runfolder import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ImageGrid:
    """Images side by side, row by row.

    Args:
        images: (n, C, H, W) in [0, 1], C 1 or 3.
        columns: images in a row.
        title: above the picture.
        caption: one sentence below it in the report.
        row_labels: one per row, or none.
        column_labels: one per column, or none.
    """

    images: Tensor
    columns: int
    title: str = ""
    caption: str = ""
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure with the words that belong to it.

    Args:
        figure: drawn without pyplot, so that nothing keeps it alive.
        title: above the picture.
        caption: one sentence below it in the report.
    """

    figure: Figure
    title: str = ""
    caption: str = ""


Picture = ImageGrid | Plot


def save_picture(picture: Picture, path: Path) -> Path:
    """Write a picture as PNG; returns `path`."""
    figure = _figure_of(picture) if isinstance(picture, ImageGrid) else picture.figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    write_atomic(path, buffer.getvalue())
    return path


def save_sheet(grid: ImageGrid, path: Path, scale: int = 1) -> Path:
    """Write the pixels of a grid alone as PNG, one pixel of white between images; returns `path`.

    Args:
        scale: whole-number magnification.
    """
    from PIL import Image

    sheet = _mosaic(grid, gap=1).repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
    return path


def _mosaic(grid: ImageGrid, gap: int) -> np.ndarray:
    """The grid as one picture, (rows, columns, 3) uint8."""
    pixels = np.rint(grid.images.detach().cpu().float().clamp(0, 1).numpy() * 255).astype(np.uint8)
    if pixels.shape[1] == 1:
        pixels = pixels.repeat(3, axis=1)
    n, _, height, width = pixels.shape
    columns = min(grid.columns, n) or 1
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet


def _figure_of(grid: ImageGrid) -> Figure:
    from matplotlib.figure import Figure

    sheet = _mosaic(grid, gap=2)
    height, width = grid.images.shape[2:]
    rows, columns = -(-len(grid.images) // grid.columns), min(grid.columns, len(grid.images))
    cell = 0.55
    labels = max((len(label) for label in grid.row_labels), default=0) * 0.075
    figure = Figure(figsize=(max(3.0, columns * cell + labels + 0.3), rows * cell * height / width + 0.8))
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(grid.title, fontsize=9, loc="left")
    axes.set_xticks(
        [column * (width + 2) + width / 2 for column in range(len(grid.column_labels))], grid.column_labels, fontsize=7
    )
    axes.set_yticks(
        [row * (height + 2) + height / 2 for row in range(len(grid.row_labels))], grid.row_labels, fontsize=7
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
