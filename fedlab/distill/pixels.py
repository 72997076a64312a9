"""Between 8-bit pixels and the normalized space that networks see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _column(values: Sequence[float], like: Tensor | None = None) -> Tensor:
    column = torch.tensor(tuple(values)).reshape(1, -1, 1, 1)
    return column if like is None else column.to(like.device)


def valid_range(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """−mean/std and (1 − mean)/std, black and white in normalized space, each (1, C or 1, 1, 1)."""
    return -_column(mean) / _column(std), (1 - _column(mean)) / _column(std)


def to_bytes(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalized images (n, C, H, W) → uint8, rounded, clipped to [0, 255]."""
    unit = images.detach().float() * _column(std, images) + _column(mean, images)
    return (unit * 255).round().clamp(0, 255).to(torch.uint8)


def from_bytes(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (n, C, H, W) → normalized float32; `to_bytes` undoes it exactly."""
    return (pixels.float() / 255 - _column(mean, pixels)) / _column(std, pixels)
