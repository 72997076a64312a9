"""The views of a shape: two of most of it, several of small parts, and some of the whole at few points (§3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedlab.distill import point_views as pv
from fedlab.method import Batch
from fedlab.methods.dcglr.settings import DCGLRSettings

KINDS = "views"
"""Key of a batch for its views: a list of tensors (V, B, M, 3), one for each kind; the first are the global views."""
_USUAL = {"deviation": 0.01, "limit": 0.05}, (2 / 3, 3 / 2), 0.2
_WEAK = {"deviation": 0.002, "limit": 0.01}, (4 / 5, 5 / 4), 0.05


def views(s: DCGLRSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """Two global views, the local views, and two views for each resolution, of clouds ``points`` (B, N, 3)."""
    clouds = batch["points"]
    kinds = [torch.stack([global_view(s, clouds, generator, weak=s.weak_second and v == 1) for v in range(2)])]
    if s.local_views:
        kinds.append(torch.stack([local_view(s, clouds, generator) for _ in range(s.local_views)]))
    for size in s.resolutions:
        kinds.append(torch.stack([coarse_view(s, clouds, size, generator) for _ in range(2)]))
    return {KINDS: kinds, **({"label": batch["label"]} if "label" in batch else {})}


def global_view(s: DCGLRSettings, clouds: Tensor, generator: torch.Generator, *, weak: bool = False) -> Tensor:
    """Most of each cloud: (B, ⌈filled · N⌉, 3)."""
    return _part(s, clouds, s.global_crop, generator, _WEAK if weak else _USUAL)


def local_view(
    s: DCGLRSettings, clouds: Tensor, generator: torch.Generator, crop: tuple[float, float] | None = None
) -> Tensor:
    """A small part of each cloud: (B, ⌈local_size · N⌉, 3), of the share `crop` instead of that of training."""
    whole = _part(s, clouds, crop or s.local_crop, generator, _USUAL)
    size = math.ceil(s.local_size * clouds.shape[1])
    return pv.subset(whole, size, generator) if size < whole.shape[1] else whole


def coarse_view(s: DCGLRSettings, clouds: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """The whole of each cloud at few points, somewhere else: (B, size, 3)."""
    clouds = turned(s, pv.jitter(clouds, generator), generator)
    few = pv.taken(clouds, pv.farthest_points(clouds, size))
    return pv.shuffle(pv.shift(few, generator, s.resolution_shift), generator)


def turned(s: DCGLRSettings, clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Clouds under the rotation of the setting ``rotation``."""
    if s.rotation == "none":
        return clouds
    return pv.rotate_up(clouds, generator) if s.rotation == "up" else pv.rotate(clouds, generator)


def _part(
    s: DCGLRSettings,
    clouds: Tensor,
    crop: tuple[float, float],
    generator: torch.Generator,
    strength: tuple[dict[str, float], tuple[float, float], float],
) -> Tensor:
    """Jitter, crop, scale and shift, then completion. Its nearest neighbors are those of the scaled part."""
    noise, factors, distance = strength
    kept, count = pv.ball_crop(pv.jitter(turned(s, clouds, generator), generator, **noise), *crop, generator)
    moved = pv.shift(pv.scale(kept, generator, *factors), generator, distance)
    return pv.shuffle(pv.complete(moved, count, math.ceil(s.filled * clouds.shape[1]), generator), generator)
