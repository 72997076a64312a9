"""CutMix and Mixup whose parameters can be stored: each batch has one permutation and one share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor

Mixing = Literal["cutmix", "mixup", "none"]
_NOWHERE = (0, 0, 0, 0)


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with itself.

    Args:
        permutation: (n,) integers, the partner of each image.
        share: λ, the share of an image that is its own; for CutMix, the exact share of its pixels.
        box: top, bottom, left, right of CutMix's rectangle in pixels. None stands for Mixup, which blends whole images.
    """

    permutation: Tensor
    share: float
    box: tuple[int, int, int, int] | None = _NOWHERE


def draw_mix(kind: Mixing, count: int, size: tuple[int, int], generator: torch.Generator) -> Mix:
    """Draw the parameters of CutMix with λ ~ β(1, 1), of Mixup with λ ~ β(0.8, 0.8), or of no mixing.

    Args:
        kind: the kind of mixing.
        count: n, the number of images.
        size: height and width in pixels.
        generator: a CPU generator.

    Source: Yun et al. 2019, arXiv 1905.04899; Zhang et al. 2018, arXiv 1710.09412; the parameters of SRe²L's code.
    """
    if kind == "none":
        return Mix(torch.arange(count), 1.0)
    permutation = torch.randperm(count, generator=generator)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    match kind:
        case "cutmix":
            box = cut_box(rng.beta(1.0, 1.0), size, (rng.random(), rng.random()))
            area = (box[1] - box[0]) * (box[3] - box[2])
            return Mix(permutation, 1 - area / (size[0] * size[1]), box)
        case "mixup":
            # rounded to float32, so that a stored share gives the same images
            return Mix(permutation, float(np.float32(rng.beta(0.8, 0.8))), None)
        case _:
            assert_never(kind)


def cut_box(share: float, size: tuple[int, int], center: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a rectangle with a share of 1 − λ of the picture's area, clipped to the picture.

    Args:
        share: λ.
        size: height and width of the picture in pixels.
        center: center of the rectangle, as shares of height and width in [0, 1).
    """
    spans = []
    for side, middle in zip(size, center, strict=True):
        half, at = int(side * math.sqrt(1 - share)) // 2, int(middle * side)
        spans += [max(0, at - half), min(side, at + half)]
    return spans[0], spans[1], spans[2], spans[3]


def mix(images: Tensor, how: Mix) -> Tensor:
    """Mix `images` (n, C, H, W) as drawn; an empty rectangle or a share of 1 leaves them unchanged."""
    partners = how.permutation.to(images.device)
    if how.box is None:
        return how.share * images + (1 - how.share) * images[partners]
    top, bottom, left, right = how.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return mixed
