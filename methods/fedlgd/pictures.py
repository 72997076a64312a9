"""FedLGD's virtual images as pictures for the report and as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fedlab.method import FigureContext, ImageGrid, Picture, shown_of


def contact_sheets(ctx: FigureContext, ipc_global: int) -> dict[str, Picture]:
    """The global images (rows: images, columns: classes) and one image per class of every client whose disk is here."""
    sheets: dict[str, Picture] = {}
    classes, when = ctx.task.num_classes, ctx.when
    if "images" in ctx.shared:
        images = ctx.denormalize(ctx.shared["images"])
        by_class = images.reshape(classes, ipc_global, *images.shape[1:]).transpose(0, 1)
        sheets["virtual-global"] = ImageGrid(
            by_class.reshape(-1, *images.shape[1:]),
            columns=classes,
            title=f"Global virtual images {when}",
            caption="Images that the server distilled from the aggregated update, one column per class.",
            column_labels=ctx.task.class_names,
        )
    rows: list[Tensor] = []
    names: list[str] = []
    for name, state in _local_sets(ctx, most=20):
        images, labels = ctx.denormalize(state["images"]), state["labels"]
        row = torch.full((classes, *images.shape[1:]), 0.5)
        for c in torch.unique(labels).tolist():
            row[c] = images[labels == c][0]
        rows.append(row)
        names.append(name)
    if rows:
        sheets["virtual-local"] = ImageGrid(
            torch.cat(rows),
            columns=classes,
            title=f"Local virtual images {when}",
            caption="One row per client, one image per class, read from the simulated clients' own disks."
            + shown_of(len(names), len(ctx.client_names), "clients"),
            row_labels=tuple(names),
            column_labels=ctx.task.class_names,
        )
    return sheets


def virtual_sets(
    ctx: FigureContext, global_labels: Callable[[Tensor], Tensor]
) -> dict[str, Mapping[str, Tensor] | ImageGrid]:
    """The final virtual sets in normalized space with labels, and each as a sheet of pictures (columns: classes)."""
    kept: dict[str, Mapping[str, Tensor] | ImageGrid] = {}
    sets = {f"virtual-local-{name}": (state["images"], state["labels"]) for name, state in _local_sets(ctx)}
    if "images" in ctx.shared:
        sets["virtual-global"] = ctx.shared["images"], global_labels(ctx.shared["images"])
    for name, (images, labels) in sets.items():
        kept[name] = {"images": images, "labels": labels}
        classes = len(torch.unique(labels))
        by_class = ctx.denormalize(images).reshape(classes, -1, *images.shape[1:]).transpose(0, 1)
        kept[f"{name}-sheet"] = ImageGrid(by_class.reshape(-1, *images.shape[1:]), columns=classes)
    return kept


def _local_sets(ctx: FigureContext, most: int | None = None) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    for client, name in enumerate(ctx.client_names[:most]):
        state = ctx.client_state(client)
        if state is not None and "images" in state:
            yield name, state
