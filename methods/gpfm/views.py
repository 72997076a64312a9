"""Crops of tiles: two global ones and several small ones for training, the whole tile for evaluation (§3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.masking import block_masks
from fedlab.distill.photometric import Recipe, alter
from fedlab.distill.views import draw_views, take_views
from fedlab.errors import DataError
from fedlab.method import Batch, Task
from fedlab.methods.gpfm.settings import GPFMSettings

_JITTER, _SIGMA = (0.4, 0.4, 0.2, 0.1), (0.1, 2.0)


def check_tiles(s: GPFMSettings, task: Task) -> int:
    """The number of channels of the tiles.

    Raises:
        DataError: no pictures, or another number of channels than the settings' statistics.
    """
    if "image" not in task.columns or len(task.columns["image"][1]) != 3:
        raise DataError("data.source", list(task.columns), "pictures in a column 'image'", "use another source")
    channels = int(task.columns["image"][1][0])
    for key, values in (("mean", s.views.mean), ("std", s.views.std)):
        if len(values) not in (1, channels):
            fix = f"set method.views.{key} to one number, or to one for each channel"
            raise DataError("data.source", f"pictures of {channels} channels", f"{len(values)} channels", fix)
    return channels


def normalized(s: GPFMSettings, images: Tensor) -> Tensor:
    """Tiles in [0, 1] (n, C, H, W) → (x − mean) / std."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (s.views.mean, s.views.std))
    return (images - mean) / std


def training_crops(s: GPFMSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """Crops of B tiles.

    Returns:
        ``crops`` (2B, C, size, size), those of the first crop first; ``mask`` (2B, N) truth values, the patches that
        the student does not see; and with local crops ``local`` (L · B, C, local_size, local_size).
    """
    images, v = batch["image"], s.views
    size = (v.size, v.size)
    crops = torch.cat([_crop(s, images, v.scale, size, _recipe(s, place), generator) for place in range(2)])
    grid = (v.size // s.patch, v.size // s.patch)
    mask = block_masks(len(crops), grid, generator, masked=s.masked, share=s.mask_share).flatten(1)
    made = {"crops": crops, "mask": torch.as_tensor(mask, device=images.device)}
    if v.local:
        small, recipe = (v.local_size, v.local_size), _recipe(s, 2)
        cut = [_crop(s, images, v.local_scale, small, recipe, generator) for _ in range(v.local)]
        made["local"] = torch.cat(cut)
    return made


def whole_tiles(s: GPFMSettings, images: Tensor) -> Tensor:
    """Tiles as they are judged (§3.5): resized bicubically to the size of a global crop, and normalized."""
    size = (s.views.size, s.views.size)
    if images.shape[2:] != size:
        images = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return normalized(s, images)


def _recipe(s: GPFMSettings, place: int) -> Recipe:
    """Changes of color: of the first and the second global crop, and of local ones."""
    v = s.views
    return Recipe(
        _JITTER,
        v.color,
        v.gray,
        blur=_SIGMA,
        blur_probability=v.blur[place],
        solarize_probability=v.solarize if place == 1 else 0.0,
    )


def _crop(
    s: GPFMSettings,
    images: Tensor,
    scale: tuple[float, float],
    size: tuple[int, int],
    recipe: Recipe,
    generator: torch.Generator,
) -> Tensor:
    drawn = draw_views(len(images), (images.shape[2], images.shape[3]), generator, scale=scale, flip=s.views.flip)
    return normalized(s, alter(take_views(images, drawn, size, "bicubic").clamp(0, 1), recipe, generator))
