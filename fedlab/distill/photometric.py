"""Changes of color and sharpness, drawn for each image on its own from a given generator.

All take images (n, C, H, W) with values in [0, 1], C = 1 or 3, on any device, and return values in [0, 1]: they come
before images are normalized, and after bicubic views are clamped. Generators are of the CPU. What is drawn for an image
depends on its place in the batch, never on the other images or on how many follow it.

Source: the operations are those of torchvision's ``ColorJitter``, ``Grayscale``, ``GaussianBlur`` and ``Solarize``, as
used by Chen et al. 2020, arXiv 2002.05709, and Caron et al. 2021, arXiv 2104.14294.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True)
class Recipe:
    """How views are changed, in this order; by default not at all.

    Args:
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_probability: share of the images whose colors are changed.
        gray_probability: share of the images that become gray.
        blur: smallest and largest standard deviation of the blur, in pixels.
        blur_probability: share of the images that are blurred.
        solarize_probability: share of the images that are solarized.
        threshold: least value that is inverted in a solarized image.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.0
    gray_probability: float = 0.0
    blur: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.0
    solarize_probability: float = 0.0
    threshold: float = 0.5


def alter(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Copies of the images after all steps of a recipe.

    Raises:
        ValueError: values outside [0, 1], or neither one nor three channels.
    """
    r = recipe
    images = color_jitter(images, r.jitter, generator, probability=r.jitter_probability)
    images = random_grayscale(images, generator, probability=r.gray_probability)
    images = random_blur(images, r.blur, generator, probability=r.blur_probability)
    return random_solarize(images, generator, probability=r.solarize_probability, threshold=r.threshold)


# drawn image by image


def color_jitter(
    images: Tensor, strengths: tuple[float, float, float, float], generator: torch.Generator, *, probability: float = 1
) -> Tensor:
    """Change brightness, contrast, saturation and hue, in an order that is drawn for each image too.

    Args:
        images: (n, C, H, W) in [0, 1].
        strengths: b, c, s and h. The factors of the first three are drawn from U(max(0, 1 − strength), 1 + strength);
            the shift of the hue, as a share of the circle, from U(−h, h).
        generator: of the CPU.
        probability: share of the images that are changed.

    Raises:
        ValueError: values outside [0, 1], or neither one nor three channels.
    """
    drawn = _draws(images, 9, generator)
    changed, order = drawn[:, 0] < probability, drawn[:, 1:5].argsort(dim=1)
    result = images.clone()
    for position in range(4):
        for kind, (change, strength) in enumerate(zip(_CHANGES, strengths, strict=True)):
            rows = (changed & (order[:, position] == kind)).nonzero()[:, 0]
            if strength and len(rows):
                low, high = (-strength, strength) if change is hue else (max(0.0, 1 - strength), 1 + strength)
                amounts = (low + (high - low) * drawn[rows, 5 + kind]).to(images)
                rows = rows.to(images.device)
                result[rows] = change(result[rows], amounts)
    return result


def random_grayscale(images: Tensor, generator: torch.Generator, *, probability: float) -> Tensor:
    """Images that are made gray with `probability`, all channels alike.

    Raises:
        ValueError: values outside [0, 1], or neither one nor three channels.
    """
    return _where(_draws(images, 1, generator)[:, 0] < probability, luma(images).expand_as(images), images)


def random_blur(
    images: Tensor, deviations: tuple[float, float], generator: torch.Generator, *, probability: float
) -> Tensor:
    """Images that are blurred with `probability`, by a standard deviation drawn uniformly from a range, in pixels.

    Raises:
        ValueError: values outside [0, 1], or neither one nor three channels.
    """
    drawn = _draws(images, 2, generator)
    rows = (drawn[:, 0] < probability).nonzero()[:, 0]
    if not len(rows):
        return images
    low, high = deviations
    σ, rows = (low + (high - low) * drawn[rows, 1]).to(images), rows.to(images.device)
    result = images.clone()
    result[rows] = gaussian_blur(images[rows], σ, radius=math.ceil(3 * high))
    return result


def random_solarize(
    images: Tensor, generator: torch.Generator, *, probability: float, threshold: float = 0.5
) -> Tensor:
    """Images that are solarized with `probability`.

    Raises:
        ValueError: values outside [0, 1], or neither one nor three channels.
    """
    return _where(_draws(images, 1, generator)[:, 0] < probability, solarize(images, threshold), images)


# with given amounts


def luma(images: Tensor) -> Tensor:
    """Gray values by ITU-R 601, (n, 1, H, W); images of one channel as they are."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Values times a factor for each image, (n,), cut off at 1."""
    return (images * _beside(factors)).clamp(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """The distance of every value to the image's mean gray value times a factor for each image, (n,)."""
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (images - mean) * _beside(factors)).clamp(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """The distance of every pixel's color to its gray value times a factor for each image, (n,)."""
    gray = luma(images)
    return (gray + (images - gray) * _beside(factors)).clamp(0, 1)


def hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Hues turned by a share of the circle for each image, (n,); saturation and value in the HSV sense stay.

    Images of one channel have no hue and stay as they are.
    """
    if images.shape[1] == 1:
        return images
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    red, green, blue = (images / chroma.masked_fill(chroma == 0, 1)[:, None]).unbind(1)
    # sixths of the circle, from red over green and blue; gray pixels have chroma 0 and any hue
    beside_green = torch.where(value == images[:, 1], 2 + blue - red, 4 + red - green)
    sixths = torch.where(value == images[:, 0], green - blue, beside_green)
    turned = sixths + 6 * shifts[:, None, None]
    channels = [((turned + offset) % 6) for offset in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in channels], dim=1)


def gaussian_blur(images: Tensor, deviations: Tensor, radius: int) -> Tensor:
    """Images smoothed with a Gaussian of an own standard deviation, (n,) in pixels; beyond the border, it is repeated.

    Args:
        images: (n, C, H, W).
        deviations: (n,), positive.
        radius: the Gaussian is cut off beyond so many pixels.
    """
    n, channels, height, _ = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-((offsets / deviations[:, None]) ** 2) / 2, dim=1).repeat_interleave(channels, dim=0)
    x = F.pad(images, (radius,) * 4, mode="replicate").reshape(1, n * channels, height + 2 * radius, -1)
    x = F.conv2d(x, weights[:, None, :, None], groups=n * channels)
    x = F.conv2d(x, weights[:, None, None, :], groups=n * channels)
    return x.reshape(images.shape).clamp(0, 1)


def solarize(images: Tensor, threshold: float = 0.5) -> Tensor:
    """Values of `threshold` or more are inverted, v → 1 − v."""
    return torch.where(images >= threshold, 1 - images, images)


_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)


def _draws(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(n, count) from U[0, 1) on the CPU, row by row.

    Raises:
        ValueError: images that the operations cannot change.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of one or three channels, (n, C, H, W), not {tuple(images.shape)}")
    if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise ValueError("values in [0, 1]: change images before they are normalized, and clamp bicubic views")
    return torch.rand(len(images), count, generator=generator)


def _where(rows: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(_beside(rows.to(images.device)), changed, images)


def _beside(values: Tensor) -> Tensor:
    return values[:, None, None, None]
