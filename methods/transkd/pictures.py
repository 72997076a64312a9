"""Predictions of teacher and student for a few images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlab.method import FigureContext, ImageGrid, Picture, label_overlay, shown_of

_SHOWN, _NAMED = 6, 12


@torch.no_grad()
def overlays(ctx: FigureContext, samples: Mapping[str, Tensor] | None) -> dict[str, Picture]:
    """Image, truth, and each network's prediction for the first few samples, classes in colors of their own.

    Args:
        ctx: networks and names.
        samples: ``image`` and ``mask`` columns, or None: nothing to show.
    """
    if not samples or not len(samples["image"]):
        return {}
    images, masks = samples["image"][:_SHOWN], samples["mask"][:_SHOWN]
    shown = ctx.denormalize(images)
    rows, names = [shown, label_overlay(shown, masks, ctx.task.num_classes)], ["image", "truth"]
    for role in ("teacher", "student"):
        if role in ctx.networks:
            predicted = ctx.networks[role](images).argmax(dim=1)
            rows.append(label_overlay(shown, predicted, ctx.task.num_classes))
            names.append(role)
    names_of = ctx.task.class_names[:_NAMED]
    grid = ImageGrid(
        torch.cat(rows),
        columns=len(shown),
        title=f"Segmentation {ctx.when}",
        caption=f"Classes in color: {', '.join(names_of)}; unlabeled pixels show the image."
        + shown_of(len(names_of), len(ctx.task.class_names), "classes by name")
        + shown_of(len(shown), len(samples["image"]), "images"),
        row_labels=tuple(names),
    )
    return {"segmentation": grid}
