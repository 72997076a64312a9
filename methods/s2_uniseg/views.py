"""The whole image for the teacher, and random crops of it for the student (§3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.photometric import Recipe, alter
from fedlab.distill.views import Views, draw_views, take_views
from fedlab.errors import DataError
from fedlab.method import Batch, Task
from fedlab.methods.s2_uniseg.settings import S2UniSegSettings
from fedlab.models.mask2former import STRIDES

_RECIPE = Recipe((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, blur=(0.1, 2.0), blur_probability=0.5)


def check_images(s: S2UniSegSettings, task: Task) -> int:
    """The number of channels of the images.

    Raises:
        DataError: no images, images whose sides do not divide, or another number of channels than the statistics have.
    """
    _, shape = task.columns.get("image", ("", ()))
    if len(shape) != 3:
        raise DataError("data.source", sorted(task.columns), "images in a column 'image'", "use another source")
    channels, height, width = shape
    needed = STRIDES[-1] if s.backbone.kind == "cosines" else max(STRIDES[-1], s.backbone.shrink * s.backbone.patch)
    if height % needed or width % needed:
        fix = f"set data.source.size to multiples of {needed}"
        raise DataError("data.source", f"images of {height}×{width} pixels", f"sides that {needed} divides", fix)
    for key, values in {"mean": s.views.mean, "std": s.views.std}.items():
        if len(values) not in (1, channels):
            expected = f"one number, or one for each of the {channels} channels"
            raise DataError(f"method.views.{key}", list(values), expected, "see data.source for the channels")
    return int(channels)


def normalized(s: S2UniSegSettings, images: Tensor) -> Tensor:
    """Images in [0, 1] (n, C, H, W) → (x − mean) / std."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (s.views.mean, s.views.std))
    return (images - mean) / std


def training_views(s: S2UniSegSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """The views of B images.

    Returns:
        ``whole`` (B, C, H, W); ``crops`` (δ · B, C, size, size), the first crop of every image first; ``boxes`` and
        ``flips`` of the crops, as `Views` has them. Images are normalized.
    """
    images, v = batch["image"], s.views
    drawn = [
        draw_views(len(images), (images.shape[2], images.shape[3]), generator, scale=v.scale, flip=v.flip)
        for _ in range(v.crops)
    ]
    crops = torch.cat([take_views(images, views, (v.size, v.size)) for views in drawn]).clamp(0, 1)
    if v.color:
        crops = alter(crops, _RECIPE, generator)
    where = {"boxes": torch.cat([d.boxes for d in drawn]), "flips": torch.cat([d.flips for d in drawn])}
    placed = {name: torch.as_tensor(value, device=images.device) for name, value in where.items()}
    return {"whole": normalized(s, images), "crops": normalized(s, crops), **placed}


def crops_of(batch: Mapping[str, Tensor]) -> Views:
    """Where the crops of a batch lie."""
    return Views(batch["boxes"], batch["flips"])


def whole_views(count: int, like: Tensor) -> Views:
    """`count` views of whole images."""
    boxes = like.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(count, 4)
    return Views(boxes, torch.zeros(count, dtype=torch.bool, device=like.device))


def cropped_masks(masks: Tensor, views: Views, view: int, size: tuple[int, int]) -> Tensor:
    """Masks (m, rows, columns) of one image in one of the views of it, by nearest neighbor, (m, *size) truth values."""
    if not len(masks):
        return masks.new_zeros(0, *size)
    one = Views(views.boxes[view : view + 1], views.flips[view : view + 1])
    return take_views(masks[None].float(), one, size, "nearest")[0] > 0.5


def enlarged(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (n, Q, h, w) at another size, bilinearly."""
    return F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=False)
