"""Pictures of the crops that student, teacher and experts see of a tile."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.method import FigureContext, ImageGrid, Picture, shown_of
from fedlab.methods.gpfm.settings import GPFMSettings
from fedlab.methods.gpfm.views import training_crops

_TILES, _SMALL, _HIDDEN = 4, 2, 0.5


@torch.no_grad()
def crops_and_masks(ctx: FigureContext, s: GPFMSettings) -> dict[str, Picture]:
    """A row for each tile: the tile, both global crops, both as the student sees them, and two local crops."""
    columns = ctx.samples("test")
    if not columns:
        return {}
    tiles = columns["image"][:_TILES]
    made = training_crops(s, {"image": tiles}, ctx.generator("crops"))
    crops, size = _shown(s, made["crops"]), s.views.size
    hidden = made["mask"].reshape(len(crops), 1, size // s.patch, size // s.patch).float()
    masked = torch.where(F.interpolate(hidden, size=(size, size)) > 0, torch.tensor(_HIDDEN).to(crops), crops)
    count = min(_SMALL, s.views.local)
    small = list(_shown(s, made["local"]).chunk(s.views.local)[:count]) if count else []
    kinds = [tiles.clamp(0, 1), *crops.chunk(2), *masked.chunk(2), *small]
    fitted = [F.interpolate(kind, size=(size, size), mode="nearest") for kind in kinds]
    names = [ctx.task.class_names[int(c)] for c in columns["label"][:_TILES]] if "label" in columns else []
    return {
        "crops": ImageGrid(
            torch.stack(fitted, dim=1).flatten(0, 1),
            columns=len(kinds),
            title="Tiles and their crops",
            caption="Teacher and experts see the global crops; the student sees them with hidden patches, and the "
            "local crops. Held-out tiles." + shown_of(len(tiles), len(columns["image"]), "tiles"),
            row_labels=tuple(names),
            column_labels=("tile", "crop 1", "crop 2", "1, student", "2, student", *["local"] * count),
        )
    }


def _shown(s: GPFMSettings, crops: Tensor) -> Tensor:
    """Normalized crops → [0, 1]."""
    mean, std = (crops.new_tensor(values)[:, None, None] for values in (s.views.mean, s.views.std))
    return (crops * std + mean).clamp(0, 1)
