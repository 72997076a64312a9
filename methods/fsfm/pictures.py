"""Pictures of faces, their regions, what is hidden of them, and what the network makes of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.data.regions import REGIONS
from fedlab.method import FigureContext, ImageGrid, Picture, label_overlay, network, shown_of
from fedlab.methods.fsfm.losses import patch_targets
from fedlab.methods.fsfm.masks import COVERABLE, GROUPS, Masks, draw_masks, patch_groups
from fedlab.methods.fsfm.networks import Normalizer, Student
from fedlab.methods.fsfm.settings import FSFMSettings

_COVERED = torch.tensor([0.85, 0.15, 0.1])[:, None, None]


@torch.no_grad()
def restorations(ctx: FigureContext, s: FSFMSettings, found: Mapping[str, Tensor]) -> dict[str, Picture]:
    """Six faces, each with another region covered.

    Restored patches have the mean and deviation of the true ones, because the network only learns what is left.

    Args:
        ctx: the pictures' context.
        s: settings.
        found: real faces of the server with their maps, since those of clients are never shown; may be empty.
    """
    if not len(found.get("image", ())):
        return {}
    rows = torch.linspace(0, len(found["image"]) - 1, min(COVERABLE, len(found["image"]))).long().tolist()
    faces, regions = found["image"][rows], found["regions"][rows]
    groups, generator = torch.as_tensor(patch_groups(regions, s.patch), device="cpu"), ctx.generator("covered")
    total = s.hidden(groups.shape[2])
    drawn = [draw_masks(groups[row : row + 1], total, generator, covered=row) for row in range(len(rows))]
    masks = Masks(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
    x = network(ctx.networks, "normalizer", Normalizer)(faces)
    visible = torch.as_tensor(masks.visible, device=x.device)
    made = network(ctx.networks, "student", Student).masked(x, visible, False).pixels.float()
    pixels = torch.as_tensor(made, device="cpu")
    images = ctx.denormalize(faces)
    masked, region = _enlarged(masks.masked, images, s.patch), _enlarged(masks.region, images, s.patch)
    hidden = torch.where(region, _COVERED, torch.where(masked, torch.tensor(0.5), images))
    restored = torch.where(masked, _pictures(pixels, images, s), images)
    shown = (images, label_overlay(images, regions, len(REGIONS)), hidden, restored)
    return {
        "restored": ImageGrid(
            torch.cat([part if part.shape[1] == 3 else part.expand(-1, 3, -1, -1) for part in shown]),
            columns=len(rows),
            title=f"Hidden and restored faces, {ctx.when}",
            caption="From top to bottom: the face, its regions, what the network sees of it, and what it restores. The "
            "covered region is red, other hidden patches are gray. Restored patches have the brightness and contrast "
            "of the true ones." + shown_of(len(rows), len(found["image"]), "faces", "some,"),
            row_labels=("face", "regions", "seen", "restored"),
            column_labels=GROUPS[: len(rows)],
        )
    }


def _enlarged(mask: Tensor, images: Tensor, patch: int) -> Tensor:
    """Patches (n, N) as pixels (n, 1, H, W)."""
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    return mask.reshape(-1, 1, rows, columns).repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def _pictures(pixels: Tensor, images: Tensor, s: FSFMSettings) -> Tensor:
    """Pictures (n, C, H, W) in [0, 1] of what was predicted for patches (n, N, C · patch²)."""
    true = patch_targets(images, s.patch, False)
    if s.norm_pix_loss:
        pixels = pixels * true.std(-1, keepdim=True) + true.mean(-1, keepdim=True)
    size = (images.shape[2], images.shape[3])
    return F.fold(pixels.transpose(1, 2), size, s.patch, stride=s.patch).clamp(0, 1)
