"""The augmentation of PAT's images."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.distill.erasing import padded_crop, random_flip, random_rectangles
from fedlab.distill.photometric import luma


def augment(
    images: Tensor, generator: torch.Generator, *, flip: float, pad: int, gray_patch: float, erase: float, fill: float
) -> Tensor:
    """Mirrored, shifted, partly gray or erased copies, drawn image by image.

    Args:
        images: (n, C, H, W), normalized.
        generator: of the CPU.
        flip: probability of a horizontal flip.
        pad: border in pixels, cropped to the old size at a random place.
        gray_patch: probability that a rectangle (2–40 % of the area, aspect 0.3–3.3) turns gray.
        erase: probability that such a rectangle is erased.
        fill: value of the border and of what is erased: black.
    """
    images = random_flip(images, generator, probability=flip)
    if pad:
        images = padded_crop(images, pad, generator, fill=fill)
    if gray_patch:
        images = torch.where(random_rectangles(images, gray_patch, generator), luma(images), images)
    if erase:
        images = images.masked_fill(random_rectangles(images, erase, generator), fill)
    return images
