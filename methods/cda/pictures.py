"""CDA's synthetic images as pictures for the report and as files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlab.method import FigureContext, ImageGrid, Picture, shown_of
from fedlab.methods.cda.curriculum import crop_bound
from fedlab.methods.cda.recover import STAGES, draw_view
from fedlab.methods.cda.settings import CDASettings, Recover

_MOST = 20  # classes in a picture
_ROWS, _VIEWS = 10, 10


def synthetic_pictures(ctx: FigureContext, s: CDASettings) -> dict[str, Picture]:
    """The synthetic set by class, its recovery step by step, and the views that the curriculum showed."""
    if "images" not in ctx.private:
        return {}
    images, labels = _unit(ctx.private["images"]), ctx.private["labels"].long()
    sheets: dict[str, Picture] = {
        "synthetic": ImageGrid(
            by_class(images, labels, _ROWS),
            columns=min(_MOST, len(torch.unique(labels))),
            title="Synthetic images",
            caption="The images on which the students are trained, one column per class." + _some(labels, _ROWS),
            column_labels=_names(ctx, labels),
        )
    }
    recovered = s.recover.images == "synthetic" and s.recover.iterations
    held = ctx.private if "stages" in ctx.private else ctx.client_state(0)
    if recovered and held is not None and "stages" in held:
        sheets["recovery"] = _recovery(ctx, held["stages"], held["stage_labels"].long())
        sheets["curriculum"] = _curriculum(_unit(held["stages"][-1][:1]), s.recover, ctx.generator("curriculum"))
    return sheets


def synthetic_sets(ctx: FigureContext) -> dict[str, Mapping[str, Tensor] | ImageGrid]:
    """The synthetic set as 8-bit tensors with classes, and as a sheet; soft labels where they were stored."""
    if "images" not in ctx.private:
        return {}
    images, labels = ctx.private["images"], ctx.private["labels"].long()
    most = int(torch.bincount(labels).max())
    kept: dict[str, Mapping[str, Tensor] | ImageGrid] = {
        "synthetic": {"images": images, "labels": labels},
        "synthetic-sheet": ImageGrid(by_class(_unit(images), labels, most, None), len(torch.unique(labels))),
    }
    stored = {n.removeprefix("fkd/"): v for n, v in ctx.private.items() if n.startswith("fkd/")}
    return {**kept, "soft-labels": stored} if stored else kept


def _recovery(ctx: FigureContext, stages: Tensor, labels: Tensor) -> ImageGrid:
    rows = [by_class(_unit(stage), labels, 1) for stage in stages]
    return ImageGrid(
        torch.cat(rows),
        columns=len(rows[0]),
        title="Images being recovered",
        caption="One image per class of the first chunk, from noise to the last step." + _some(labels, 1),
        row_labels=tuple(f"{share:.0%} of T" for share in STAGES[-len(rows) :]),
        column_labels=_names(ctx, labels),
    )


def _curriculum(image: Tensor, s: Recover, generator: torch.Generator) -> ImageGrid:
    size = (image.shape[2], image.shape[3])
    steps = [min(s.iterations - 1, round(share * s.iterations)) for share in STAGES]
    bounds = [crop_bound(t, s.iterations, s.curriculum, s.milestone, s.smallest) for t in steps]
    views = [draw_view(image, t, s, size, generator) for t in steps for _ in range(_VIEWS)]
    return ImageGrid(
        torch.cat(views),
        columns=_VIEWS,
        title=f"The curriculum ({s.curriculum})",
        caption=f"Views of one image as the teacher sees them at step t of {s.iterations}; α bounds the crop's area.",
        row_labels=tuple(f"t = {t}, α = {α:.2f}" for t, α in zip(steps, bounds, strict=True)),
    )


def by_class(images: Tensor, labels: Tensor, rows: int, most: int | None = _MOST) -> Tensor:
    """Up to `rows` images of each of up to `most` classes, row by row; gray where a class has fewer."""
    classes = torch.unique(labels)[:most]
    rows = min(rows, int(torch.bincount(labels).max()))
    grid = torch.full((rows, len(classes), *images.shape[1:]), 0.5)
    for column, c in enumerate(classes):
        found = images[labels == c][:rows]
        grid[: len(found), column] = found
    return grid.flatten(0, 1)


def _some(labels: Tensor, rows: int) -> str:
    """A text that says how many of these images `by_class` leaves out."""
    classes, counts = torch.unique(labels, return_counts=True)
    kept = int(counts[:_MOST].clamp(max=rows).sum())
    return shown_of(min(_MOST, len(classes)), len(classes), "classes") + shown_of(kept, len(labels), "images")


def _names(ctx: FigureContext, labels: Tensor) -> tuple[str, ...]:
    return tuple(ctx.task.class_names[c] for c in torch.unique(labels)[:_MOST].tolist())


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255
