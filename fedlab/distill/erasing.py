"""Copies of images that are mirrored, shifted, or partly covered, drawn image by image from a given generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_AREA = (0.02, 0.4)
_ASPECT = (0.3, 3.3)


def random_flip(images: Tensor, generator: torch.Generator, *, probability: float) -> Tensor:
    """Images (n, C, H, W) that are mirrored left and right with `probability`."""
    mirrored = torch.as_tensor(torch.rand(len(images), generator=generator) < probability, device=images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def padded_crop(images: Tensor, border: int, generator: torch.Generator, *, fill: float) -> Tensor:
    """Images with a border of the value `fill`, cropped to their old size at a random place.

    Args:
        images: (n, C, H, W).
        border: width in pixels.
        generator: of the CPU.
        fill: value of the border.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (border,) * 4, value=fill)
    corners = torch.randint(2 * border + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, corners, strict=True)])


def random_rectangles(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Where images are covered: (n, 1, H, W), true inside a random rectangle of the images chosen with `probability`.

    A rectangle has 2 % to 40 % of the area, drawn uniformly, and is 0.3 to 3.3 times as high as wide.

    Args:
        images: (n, C, H, W).
        probability: share of the images that get a rectangle.
        generator: of the CPU.

    Source: Zhong et al. 2017, arXiv 1708.04896 (random erasing).
    """
    count, _, height, width = images.shape
    inside = torch.zeros(count, 1, height, width, dtype=torch.bool)
    for row, (chosen, area, aspect, y, x) in enumerate(torch.rand(count, 5, generator=generator).tolist()):
        if chosen < probability:
            pixels = (_AREA[0] + (_AREA[1] - _AREA[0]) * area) * height * width
            ratio = _ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** aspect
            tall = min(height, max(1, round(math.sqrt(pixels * ratio))))
            wide = min(width, max(1, round(math.sqrt(pixels / ratio))))
            top, left = int(y * (height - tall + 1)), int(x * (width - wide + 1))
            inside[row, :, top : top + tall, left : left + wide] = True
    return torch.as_tensor(inside, device=images.device)
