"""Conversion between 8-bit pixels and normalized images, which are the networks' inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _column(values: Sequence[float], like: Tensor | None = None) -> Tensor:
    column = torch.tensor(tuple(values)).reshape(1, -1, 1, 1)
    return column if like is None else column.to(like.device)


def valid_range(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The normalized values of black, −mean/std, and of white, (1 − mean)/std; each (1, C or 1, 1, 1)."""
    return -_column(mean) / _column(std), (1 - _column(mean)) / _column(std)


def to_bytes(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert normalized images (n, C, H, W) to uint8, rounded and clipped to [0, 255]."""
    unit = images.detach().float() * _column(std, images) + _column(mean, images)
    return (unit * 255).round().clamp(0, 255).to(torch.uint8)


def from_bytes(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert uint8 images (n, C, H, W) to normalized float32. `to_bytes` is its exact reverse."""
    return (pixels.float() / 255 - _column(mean, pixels)) / _column(std, pixels)
