"""Views of pictures: two random ones and their corruption for training (§3.1), a fixed one for evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill import gmml
from fedlab.distill.photometric import Recipe, alter
from fedlab.distill.views import draw_views, take_views
from fedlab.errors import DataError
from fedlab.method import Batch, Task
from fedlab.methods.mmc.settings import MMCSettings
from fedlab.metrics.prompts import divisible

# of the first and of the second view
_RECIPES = (
    Recipe((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, blur=(0.1, 2.0), blur_probability=1.0),
    Recipe((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, blur=(0.1, 2.0), blur_probability=0.1, solarize_probability=0.2),
)


def check_pictures(s: MMCSettings, task: Task) -> int:
    """The number of channels of the pictures.

    Raises:
        DataError: no pictures, too small ones, or another number of channels than the settings' statistics.
    """
    if "image" not in task.columns or len(task.columns["image"][1]) != 3:
        raise DataError("data.source", list(task.columns), "pictures in a column 'image'", "use another source")
    channels, height, width = task.columns["image"][1]
    if s.views.crop == "window" and min(height, width) < s.views.size:
        fix = "lower method.views.size, or set method.views.crop: resized"
        raise DataError("data.source", f"{height}×{width} pictures", f"pictures of {s.views.size} pixels or more", fix)
    for key, values in (("mean", s.views.mean), ("std", s.views.std)):
        if len(values) not in (1, channels):
            fix = f"set method.views.{key} to one number, or to one for each channel"
            raise DataError("data.source", f"pictures of {channels} channels", f"{len(values)} channels", fix)
    return int(channels)


def normalized(s: MMCSettings, images: Tensor) -> Tensor:
    """Pictures in [0, 1] (n, C, H, W) → (x − mean) / std."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (s.views.mean, s.views.std))
    return (images - mean) / std


def training_views(s: MMCSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """Views of B pictures, and how the student's are corrupted.

    Returns:
        ``views`` (2B, C, size, size), clean and normalized, view 0 first, with ``mask``, ``replaced`` and ``partner``;
        with small views also ``local`` (L · B, C, local_size, local_size).
    """
    images, v = batch["image"], s.views
    count = len(images)
    seen = torch.cat([_varied(s, _cut(s, images, generator), index, generator) for index in range(2)])
    drawn = [corruption(s, count, generator) for _ in range(2)]
    made = gmml.joined(drawn)._asdict() | {"views": seen}
    if v.local:
        size = (v.local_size, v.local_size)
        small = [_resized(images, v.local_scale, size, v.flip, generator) for _ in range(v.local)]
        # small views are changed like the first view, whose blur is the strongest
        made["local"] = torch.cat([_varied(s, part, 0, generator) for part in small])
    return {name: torch.as_tensor(value, device=images.device) for name, value in made.items()}


def corrupted(batch: Mapping[str, Tensor]) -> Tensor:
    """What the student sees: the views with their blocks zeroed or replaced, (2B, C, size, size)."""
    return gmml.apply(batch["views"], gmml.Corruption(batch["mask"], batch["replaced"], batch["partner"]))


def corruption(s: MMCSettings, count: int, generator: torch.Generator) -> gmml.Corruption:
    """How `count` global views are corrupted, on the CPU; not at all in the ablation."""
    size = (s.views.size, s.views.size)
    if not s.corrupt:
        return gmml.untouched(count, size)
    return gmml.draw(count, size, generator, drop=s.drop, replace=s.replace, block=s.block, align=s.align)


def _cut(s: MMCSettings, images: Tensor, generator: torch.Generator) -> Tensor:
    """One random global view of each picture, in [0, 1]."""
    v = s.views
    if v.crop == "resized":
        return _resized(images, v.scale, (v.size, v.size), v.flip, generator)
    places = [
        torch.randint(0, (side - v.size) // s.patch + 1, (len(images), 1), generator=generator) * s.patch
        + torch.arange(v.size)
        for side in images.shape[2:]
    ]
    if v.flip:
        mirrored = torch.rand(len(images), 1, generator=generator) < 0.5
        places[1] = torch.where(mirrored, places[1].flip(1), places[1])
    rows, columns = (torch.as_tensor(place, device=images.device) for place in places)
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    # indexing with tensors apart from the channels moves these to the end
    return images[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _resized(
    images: Tensor, scale: tuple[float, float], size: tuple[int, int], flip: bool, generator: torch.Generator
) -> Tensor:
    drawn = draw_views(len(images), (images.shape[2], images.shape[3]), generator, scale=scale, flip=flip)
    return take_views(images, drawn, size, "bicubic").clamp(0, 1)


def _varied(s: MMCSettings, images: Tensor, index: int, generator: torch.Generator) -> Tensor:
    """Photometric changes of view `index`, normalization, gain and noise."""
    v = s.views
    if v.color:
        images = alter(images, _RECIPES[index], generator)
    seen = normalized(s, images)
    if v.gain != (1.0, 1.0):
        low, high = v.gain
        gains = low + (high - low) * torch.rand(len(seen), 1, 1, 1, generator=generator)
        seen = seen * torch.as_tensor(gains, device=seen.device)
    if v.noise:
        seen = seen + v.noise * torch.as_tensor(torch.randn(seen.shape, generator=generator), device=seen.device)
    return seen


def fixed_view(s: MMCSettings, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The view by which pictures are judged: the central window, or the whole picture resized.

    Returns:
        ``view`` (n, C, size, size), normalized; and, where the data has them, ``instances`` (n, h, w) and ``parts``
        (n, N) of the same part of the pictures, at a resolution that divides into the patches.
    """
    v, images = s.views, columns["image"]
    made: dict[str, Tensor] = {}
    if v.crop == "window":
        made["view"] = _central(images, v.size)
    else:
        made["view"] = _fitted(images, (v.size, v.size))
    grid = v.size // s.patch
    for name in ("instances", "parts"):
        if name in columns:
            values = columns[name]
            if v.crop == "window":
                values = _central(values, v.size * values.shape[1] // images.shape[2])
            made[name] = divisible(values, (grid, grid))
    if "parts" in made:
        made["parts"] = made["parts"].flatten(1)
    return made | {"view": normalized(s, made["view"])}


def whole_view(s: MMCSettings, columns: Mapping[str, Tensor]) -> Tensor:
    """Whole pictures as a probe sees them, (n, C, H, W), normalized.

    Where views are windows, the pictures keep their size, up to the nearest multiple of a patch: positions are resized.
    """
    images, v = columns["image"], s.views
    size = (v.size, v.size)
    if v.crop == "window":
        size = (_multiple(images.shape[2], s.patch), _multiple(images.shape[3], s.patch))
    return normalized(s, _fitted(images, size))


def _multiple(side: int, patch: int) -> int:
    return max(1, round(side / patch)) * patch


def _central(values: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in values.shape[-2:])
    return values[..., top : top + size, left : left + size]


def _fitted(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures resized to a size, smoothed where they become smaller."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
