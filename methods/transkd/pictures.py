"""What teacher and student see in a few images."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.context import FigureContext
from fedlab.pictures import ImageGrid, Picture

_SHOWN = 6
_INK = 0.6  # of an overlay's colour is the class's


@torch.no_grad()
def overlays(ctx: FigureContext, samples: Mapping[str, Tensor] | None) -> dict[str, Picture]:
    """Image, truth, and each network's prediction for the first few samples, classes in colours of their own.

    Args:
        ctx: networks and names.
        samples: ``image`` and ``mask`` columns, or None: nothing to show.
    """
    if not samples:
        return {}
    images, masks = samples["image"][:_SHOWN], samples["mask"][:_SHOWN]
    shown = ctx.denormalise(images)
    rows, names = [shown, _overlay(shown, masks.cpu(), ctx.task.num_classes)], ["image", "truth"]
    for role in ("teacher", "student"):
        if role in ctx.networks:
            predicted = ctx.networks[role](images).argmax(dim=1).cpu()
            rows.append(_overlay(shown, predicted, ctx.task.num_classes))
            names.append(role)
    grid = ImageGrid(
        torch.cat(rows),
        columns=len(shown),
        title=f"Segmentation after round {ctx.round}" if ctx.round else "Segmentation at initialisation",
        caption="Classes in colour: " + ", ".join(ctx.task.class_names[:12]) + "; unlabelled is as it is.",
        row_labels=tuple(names),
    )
    return {"segmentation": grid}


def _overlay(images: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """RGB images with masks (n, h, w) laid over them; class indices outside 0…K−1 are left as they are."""
    # the first class, most often the ground, in grey: its colour would drown the others
    hues = [colorsys.hsv_to_rgb(k / num_classes, 0.9, 1.0) for k in range(num_classes - 1)]
    palette = torch.tensor([(0.5, 0.5, 0.5), *hues])
    full = F.interpolate(masks[:, None].float(), size=images.shape[2:], mode="nearest")[:, 0].long()
    known = ((full >= 0) & (full < num_classes))[:, None]
    colours = palette[full.clamp(0, num_classes - 1)].permute(0, 3, 1, 2)
    return torch.where(known, (1 - _INK) * images + _INK * colours, images)
