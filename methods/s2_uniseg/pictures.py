"""Pictures of images with their true regions, those that UniAP pools, and those that the trained networks find."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedlab.blocks.pictures import spread_out
from fedlab.method import FigureContext, ImageGrid, Picture, label_overlay, shown_of
from fedlab.methods.s2_uniseg.judging import found_in
from fedlab.methods.s2_uniseg.settings import S2UniSegSettings

_SHOWN, _COLORS = 6, 12


def segmented(ctx: FigureContext, s: S2UniSegSettings) -> dict[str, Picture]:
    """A column for each of six images of the server's set 'test', or of the first client's test samples."""
    columns = ctx.samples("test")
    if not columns:
        return {}
    picked = spread_out(columns, _SHOWN)
    images = picked["image"]
    size = (images.shape[2], images.shape[3])
    found = found_in(s, ctx.networks, images, size)
    shown = ctx.denormalize(images)
    codes = np.stack([one.codes for one in found])
    rows = {
        "image": shown.expand(-1, 3, -1, -1),
        "pooled by UniAP": _drawn(shown, np.stack([painted(one.pooled) for one in found])),
        "found instances": _drawn(shown, np.stack([one.segments for one in found])),
        "found classes": _drawn(shown, np.searchsorted(np.unique(codes), codes)),
    }
    if "instances" in picked:
        numbers = picked["instances"].numpy(force=True)
        rows = {"image": rows["image"], "true objects": _drawn(shown, numbers - 1)} | rows
    return {
        "regions": ImageGrid(
            torch.cat(list(rows.values())),
            columns=len(shown),
            title=f"Regions {ctx.when}",
            caption="Held-out images, evenly chosen. Pixels of no object, or of no mask that was found, are as they "
            "are. A color says which instance of an image a pixel belongs to; in the last row, which of the "
            "prototypes it is assigned to, in all images alike."
            + shown_of(len(shown), len(columns["image"]), "images"),
            row_labels=tuple(rows),
        )
    }


def painted(masks: np.ndarray) -> np.ndarray:
    """Numbers of the masks (m, h, w) by pixel, (h, w), smaller masks over larger ones; −1 where there is none."""
    numbers = np.full(masks.shape[1:], -1)
    for number, place in enumerate(np.argsort(-masks.sum(axis=(1, 2)), kind="stable")):
        numbers[masks[place]] = number
    return numbers


def _drawn(images: Tensor, numbers: np.ndarray) -> Tensor:
    """Images with a color for each number, of which negative ones have none."""
    # the first color of an overlay is gray, which would look like no color at all
    labels = np.where(numbers < 0, -1, 1 + numbers % (_COLORS - 1))
    return label_overlay(images, torch.from_numpy(labels), _COLORS)
