"""Faces as they are pre-trained on: by default unchanged, with the patches that are hidden (§3.1, §3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.data.regions import MIRRORED
from fedlab.distill.views import draw_views, take_views
from fedlab.method import Batch
from fedlab.methods.fsfm.masks import draw_masks, patch_groups
from fedlab.methods.fsfm.settings import FSFMSettings


def masked_faces(s: FSFMSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """A batch of pre-training.

    Returns:
        ``image`` (n, C, H, W) in [0, 1]; ``masked`` and ``region`` (n, N), see `Masks`; ``visible`` (n, N − T).
    """
    images, regions = moved(batch["image"], batch["regions"], s.flip, s.crop, generator)
    groups = patch_groups(regions, s.patch)
    drawn = draw_masks(
        groups,
        s.hidden(groups.shape[2]),
        generator,
        masking=s.masking,
        one_region=s.region_draw == "batch",
    )
    return {"image": images, "masked": drawn.masked, "region": drawn.region, "visible": drawn.visible}


def moved(
    images: Tensor, regions: Tensor, flip: bool, crop: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Faces and their maps, mirrored and cropped alike. In a mirrored map, left and right change their names.

    Args:
        images: (n, C, H, W) in [0, 1].
        regions: (n, H, W) integers.
        flip: whether a face is mirrored with probability 1/2.
        crop: smallest share of the area of a crop; 1 for none.
        generator: of the CPU.
    """
    if not flip and crop == 1:
        return images, regions
    views = draw_views(len(images), (images.shape[2], images.shape[3]), generator, scale=(crop, 1.0), flip=flip)
    maps = take_views(regions[:, None].float(), views, mode="nearest")[:, 0].round().long()
    names = torch.tensor(MIRRORED, device=maps.device)
    mirrored = torch.as_tensor(views.flips, device=maps.device)[:, None, None]
    return take_views(images, views, mode="bicubic").clamp(0, 1), torch.where(mirrored, names[maps], maps)
