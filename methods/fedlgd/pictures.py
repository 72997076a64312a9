"""Contact sheets of FedLGD's virtual images."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.context import FigureContext
from fedlab.pictures import ImageGrid, Picture


def contact_sheets(ctx: FigureContext, ipc_global: int) -> dict[str, Picture]:
    """The global images (rows: images, columns: classes) and one image per class of every client whose disk is here."""
    sheets: dict[str, Picture] = {}
    classes, when = ctx.task.num_classes, f"after round {ctx.round}" if ctx.round else "at initialisation"
    if "images" in ctx.tensors:
        images = ctx.denormalise(ctx.tensors["images"])
        by_class = images.reshape(classes, ipc_global, *images.shape[1:]).transpose(0, 1)
        sheets["virtual-global"] = ImageGrid(
            by_class.reshape(-1, *images.shape[1:]),
            columns=classes,
            title=f"Global virtual images {when}",
            caption="One column per class; distilled by the server from the aggregated update.",
        )
    rows: list[Tensor] = []
    names: list[str] = []
    for client, name in enumerate(ctx.client_names[:20]):
        state = ctx.client_state(client)
        if state is None or "images" not in state:
            continue
        images = ctx.denormalise(state["images"])
        row = torch.full((classes, *images.shape[1:]), 0.5)
        labels = state["labels"]
        for c in labels.unique().tolist():
            row[c] = images[labels == c][0]
        rows.append(row)
        names.append(name)
    if rows:
        sheets["virtual-local"] = ImageGrid(
            torch.cat(rows),
            columns=classes,
            title=f"Local virtual images {when}",
            caption="One row per client, one image per class, read from the simulated clients' own disks.",
            row_labels=tuple(names),
        )
    return sheets
