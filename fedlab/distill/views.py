"""Random resized crops and flips whose parameters are drawn from a given generator and can be stored.

Parameters are drawn as in torchvision's RandomResizedCrop: ten attempts at an area and an aspect ratio, and then the
largest central crop of an allowed aspect ratio. The views are differentiable functions of the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic", "nearest"]
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def draw_boxes(count: int, size: tuple[int, int], scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw crop boxes with an area of scale[0] to scale[1] of the picture and an aspect ratio of 3/4 to 4/3.

    If ten attempts do not fit into the picture, the box is the largest central one of an allowed aspect ratio.

    Args:
        count: n, the number of boxes.
        size: height and width of the picture in pixels.
        scale: smallest and largest share of the area.
        generator: a CPU generator.

    Returns:
        (n, 4) int64: top, left, height, width in pixels.
    """
    height, width = size
    low, high = (math.log(r) for r in RATIO)
    u = torch.rand(4, count, _ATTEMPTS, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
    aspect = torch.exp(low + (high - low) * u[1])
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    chosen = fits.int().argmax(1, keepdim=True)  # the first attempt that fits
    w, h, y, x = (values.gather(1, chosen).squeeze(1) for values in (widths, heights, u[2], u[3]))
    top, left = (y * (height - h + 1)).floor(), (x * (width - w + 1)).floor()
    boxes = torch.stack([top, left, h, w], dim=1)
    boxes[~fits.any(1)] = torch.tensor(_whole(height, width), dtype=boxes.dtype)
    return boxes.long()


def _whole(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest central box of an allowed aspect ratio."""
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def crop_resize(images: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop all images to the same box and resize them bilinearly. Pixels outside the box get a gradient of exactly 0.

    Args:
        images: (n, C, H, W).
        box: (4,) integers, see `draw_boxes`.
        size: height and width of the result.
    """
    top, left, height, width = (int(v) for v in box)
    cut = images[:, :, top : top + height, left : left + width]
    if (height, width) == size:
        return cut
    return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Views:
    """One view of each of n images.

    Args:
        boxes: (n, 4) float32: top, left, height, width as shares of the picture's size. A box may reach beyond the
            picture.
        flips: (n,) bool, whether the view is mirrored left and right.
    """

    boxes: Tensor
    flips: Tensor


def draw_views(
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    shift: int = 0,
) -> Views:
    """Draw a random resized crop and a flip for each image.

    Args:
        count: n, the number of images.
        size: height and width of the pictures in pixels.
        generator: a CPU generator.
        scale: smallest and largest share of the area that a crop keeps. If the smallest is 1, nothing is cropped.
        flip: whether to mirror each image with probability 1/2.
        shift: every box is moved by up to this number of pixels in both directions.
    """
    sides = torch.tensor([*size, *size], dtype=torch.float64)
    boxes = torch.tensor([0, 0, *size]).expand(count, 4)
    if scale[0] < 1:
        boxes = draw_boxes(count, size, scale, generator)
    moves = torch.zeros(count, 4, dtype=torch.int64)
    if shift:
        moves[:, :2] = torch.randint(-shift, shift + 1, (count, 2), generator=generator)
    coins = torch.rand(count, generator=generator) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    return Views(((boxes + moves) / sides).float(), coins)


def take_views(
    images: Tensor, views: Views, size: tuple[int, int] | None = None, mode: Interpolation = "bilinear"
) -> Tensor:
    """The view of each image, resized. Beyond the picture, its edge is repeated.

    The result is differentiable with respect to the images. Nothing is smoothed before it is made smaller. Bicubic
    views can have values slightly outside the range of the image's.

    Args:
        images: (n, C, H, W).
        views: the views of n images.
        size: height and width of the result; None keeps those of the images.
        mode: interpolation.

    Returns:
        (n, C, *size).
    """
    top, left, height, width = views.boxes.to(images.device).unbind(1)
    zero = torch.zeros_like(top)
    across = torch.where(views.flips.to(images.device), -width, width)
    theta = torch.stack([across, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], dim=1)
    shape = [*images.shape[:2], *(size or images.shape[2:])]
    grid = F.affine_grid(theta.reshape(-1, 2, 3), shape, align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def random_resized_crop(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Each image cropped at random and resized to its size, bicubic: area in [`smallest`, 1], sides 3:4 to 4:3.

    Boxes need not begin at whole pixels, and there is no flip, which would make captions with "left" false. As in
    open_clip, up to ten crops are drawn for each image until one fits into it; else the whole image stays.

    Args:
        images: (n, C, H, H).
        smallest: least area, as a share.
        generator: a CPU generator.
    """
    count = len(images)
    area = torch.empty(count, _ATTEMPTS).uniform_(smallest, 1, generator=generator)
    ratio = torch.empty(count, _ATTEMPTS).uniform_(*torch.tensor(RATIO).log().tolist(), generator=generator).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=2)
    fits = (sides <= 1).all(dim=2)
    first = fits.to(torch.uint8).argmax(dim=1)
    side = torch.where(fits.any(1, keepdim=True), sides[torch.arange(count), first], torch.ones(()))
    corner = torch.rand(count, 2, generator=generator) * 2 - 1
    theta = torch.cat([torch.diag_embed(side), (corner * (1 - side))[:, :, None]], dim=2)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
