"""Flips and shifts of images together with their smaller masks."""

from __future__ import annotations

import torch
from torch import Tensor


def flip_and_shift(
    images: Tensor, masks: Tensor, flip: float, translate: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images and masks mirrored left to right with a probability and moved by whole mask pixels, each its own way.

    An image moves by as many of its own pixels as its mask's move covers, so that both stay aligned; the release
    moves both by the same number, four times too far for the mask. What comes in from outside is 0 in the image and
    unlabeled (−1) in the mask.

    Args:
        images: (B, C, H, W).
        masks: (B, h, w) integers, H = stride · h and W = stride · w.
        flip: probability.
        translate: largest move in mask pixels.
        generator: draws, on the CPU.
    """
    count, stride = len(images), images.shape[2] // masks.shape[1]
    mirrored = torch.rand(count, generator=generator) < flip
    moves = torch.randint(-translate, translate + 1, (count, 2), generator=generator)
    x, y = images.clone(), masks.clone()
    for index in range(count):
        if mirrored[index]:
            x[index], y[index] = images[index].flip(-1), masks[index].flip(-1)
        down, right = moves[index].tolist()
        if down or right:
            x[index] = _moved(x[index], stride * down, stride * right, 0)
            y[index] = _moved(y[index], down, right, -1)
    return x, y


def _moved(values: Tensor, down: int, right: int, fill: int) -> Tensor:
    """(…, H, W) moved by whole pixels."""
    height, width = values.shape[-2:]
    result = torch.full_like(values, fill)
    rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
    source = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
    result[..., rows, columns] = values[..., source[0], source[1]]
    return result
