"""Pictures of shapes and of the views that student and teacher see of them."""

from __future__ import annotations

import torch

from fedlab.method import FigureContext, Picture, point_clouds, shown_of
from fedlab.methods.dcglr.settings import DCGLRSettings
from fedlab.methods.dcglr.views import global_view, local_view

_SHAPES = 4


@torch.no_grad()
def shapes_and_views(ctx: FigureContext, s: DCGLRSettings) -> dict[str, Picture]:
    """A row for each shape: the shape, a global view and two local views of it."""
    columns = ctx.samples("test")
    if not columns:
        return {}
    clouds, generator = columns["points"][:_SHAPES], ctx.generator("views")
    seen = [clouds, global_view(s, clouds, generator), *(local_view(s, clouds, generator) for _ in range(2))]
    rows = [[kind[row] for kind in seen] for row in range(len(clouds))]
    names = [ctx.task.class_names[int(c)] for c in columns["label"][:_SHAPES]] if "label" in columns else []
    return {
        "views": point_clouds(
            rows,
            title="Shapes and their views",
            caption="Held-out shapes. The teacher sees global views, the student all views. Nearer points are darker."
            + shown_of(len(clouds), len(columns["points"]), "shapes"),
            row_labels=tuple(names),
            column_labels=("shape", "global view", "local view", "local view"),
        )
    }
