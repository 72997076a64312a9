"""From normalized images to pixels, and from pixels to what a network with statistics and a size of its own takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Statistics(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(tuple(values)).reshape(1, -1, 1, 1), persistent=False)


class Pixels(_Statistics):
    """Normalized images (n, C, H, W) → pixels in [0, 1].

    Args:
        mean: what was subtracted from each channel, or from all.
        std: what each channel was divided by after that.
    """

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.std + self.mean).clamp(0, 1)


class Prepared(_Statistics):
    """Pixels (n, C, H, W) in [0, 1] → what a network takes: resized bicubically, then normalized.

    Args:
        mean: what is subtracted from each channel, or from all.
        std: what each channel is divided by after that.
        size: height and width; None leaves the images as large as they are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: int | None = None) -> None:
        super().__init__(mean, std)
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        if self.size is not None and pixels.shape[2:] != (self.size, self.size):
            resized = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
            pixels = resized.clamp(0, 1)
        return (pixels - self.mean) / self.std
