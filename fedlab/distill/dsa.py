"""Differentiable Siamese augmentation: one random operation that is applied equally to real and to virtual images.

Operations and ranges are those of the authors' code, which draws one operation with equal probability (mode "S").
Parameters are drawn once, on the CPU, from a given generator.

Source: Zhao and Bilen 2021, arXiv 2102.08259.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Op = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
OPS: tuple[Op, ...] = get_args(Op)


@dataclass(frozen=True)
class Draw:
    """One operation and its parameters.

    Args:
        op: name of the operation.
        values: ``color``: added brightness, saturation factor, contrast factor. ``crop``: rows and columns the picture
            moves up and left, in pixels. ``cutout``: top, bottom, left, right of the square, clipped to the picture.
            ``flip``: 1 to mirror left and right, else 0. ``scale``: factors of x and y; a factor above 1 shrinks the
            picture. ``rotate``: angle in radians.
    """

    op: Op
    values: tuple[float, ...]


def draw(ops: Sequence[Op], image_shape: Sequence[int], generator: torch.Generator) -> Draw:
    """Draw one of `ops` with equal probability, then its parameters.

    Args:
        ops: candidates, at least one of `OPS`.
        image_shape: (C, H, W).
        generator: a CPU generator.
    """
    op = ops[_integer(len(ops), generator)]
    height, width = image_shape[-2:]
    match op:
        case "color":
            u = _uniform(3, generator)
            return Draw(op, (u[0] - 0.5, 2 * u[1], u[2] + 0.5))
        case "crop":
            reach = [int(0.125 * side + 0.5) for side in (height, width)]
            return Draw(op, tuple(_integer(2 * r + 1, generator) - r for r in reach))
        case "cutout":
            return Draw(op, (*_span(height, generator), *_span(width, generator)))
        case "flip":
            return Draw(op, (float(_uniform(1, generator)[0] < 0.5),))
        case "scale":
            low, high = 1 / 1.2, 1.2
            return Draw(op, tuple(low + (high - low) * u for u in _uniform(2, generator)))
        case "rotate":
            return Draw(op, (math.radians(15 * (2 * _uniform(1, generator)[0] - 1)),))
        case _:
            assert_never(op)


def _uniform(count: int, generator: torch.Generator) -> list[float]:
    values: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return values


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _span(side: int, generator: torch.Generator) -> tuple[int, int]:
    """First and last place (exclusive) of a span of half the side around a random center, clipped to the side.

    The center of a span of even length lies between pixels. There is one more such place than there are pixels.
    """
    size = int(0.5 * side + 0.5)
    start = _integer(side + 1 - size % 2, generator) - size // 2
    return max(0, start), min(side, start + size)


def apply(images: Tensor, draw: Draw) -> Tensor:
    """Apply the operation to every image of `images` (n, C, H, W), differentiably. Pixels without a source become 0."""
    match draw.op:
        case "color":
            brightness, saturation, contrast = draw.values
            bright = images + brightness
            gray = bright.mean(dim=1, keepdim=True)
            vivid = (bright - gray) * saturation + gray
            mean = vivid.mean(dim=(1, 2, 3), keepdim=True)
            return (vivid - mean) * contrast + mean
        case "crop":
            up, left = map(int, draw.values)
            return F.pad(images, (-left, left, -up, up))
        case "cutout":
            top, bottom, left, right = map(int, draw.values)
            cut = images.clone()
            cut[:, :, top:bottom, left:right] = 0
            return cut
        case "flip":
            return images.flip(3) if draw.values[0] else images
        case "scale":
            x, y = draw.values
            return _affine(images, ((x, 0.0, 0.0), (0.0, y, 0.0)))
        case "rotate":
            cos, sin = math.cos(draw.values[0]), math.sin(draw.values[0])
            return _affine(images, ((cos, -sin, 0.0), (sin, cos, 0.0)))
        case _:
            assert_never(draw.op)


def _affine(images: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    theta = torch.tensor([matrix], dtype=images.dtype, device=images.device)
    grid = F.affine_grid(theta, [1, *images.shape[1:]], align_corners=False).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def apply_per_class(images: Tensor, labels: Tensor, draws: Mapping[int, Draw]) -> Tensor:
    """Apply to the images of each class the operation drawn for the class. Classes without a draw do not change.

    Args:
        images: (n, C, H, W).
        labels: (n,) integers; sorted labels are the fastest.
        draws: the draw of each class.

    Returns:
        (n, C, H, W) in the order of `images`, equal to `apply` on every class alone.
    """
    ordered, order = torch.sort(labels, stable=True)
    is_sorted = torch.equal(ordered, labels)
    classes, counts = torch.unique_consecutive(ordered, return_counts=True)
    parts = torch.split(images if is_sorted else images[order], counts.tolist())
    augmented = [apply(part, draws[c]) if c in draws else part for c, part in zip(classes.tolist(), parts, strict=True)]
    together = torch.cat(augmented)
    return together if is_sorted else together[torch.argsort(order)]
