"""Pictures of where the heads of every layer look, and of the patches that the student sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedlab.blocks.pictures import in_batches, spread_out
from fedlab.method import Curve, FigureContext, ImageGrid, Picture, curves, shown_of
from fedlab.methods.hybrid_distill import evaluation
from fedlab.methods.hybrid_distill.lessons import lesson
from fedlab.methods.hybrid_distill.settings import HybridSettings

_NAMES = {"student": "student", "feature_teacher": "feature teacher", "relation_teacher": "relation teacher"}
_COUNTED, _SHOWN = 256, 8
_DROPPED = 0.85  # how white the place of a dropped patch is


@torch.no_grad()
def attention_by_layer(ctx: FigureContext, s: HybridSettings) -> dict[str, Picture]:
    """Attention distance and normalized mutual information of every head of every layer, of student and teachers."""
    samples = ctx.samples(evaluation.TEST)
    if not samples:
        return {}
    columns = spread_out(samples, _COUNTED)
    found = evaluation.statistics(s, ctx.networks, in_batches(columns, ctx.batch_size), every=True)
    panels: dict[str, Sequence[Curve]] = {
        label: [curve for role, heads in found.items() for curve in _heads(_NAMES[role], heads.by_head()[which])]
        for which, label in enumerate(("attention distance, in patches", "normalized mutual information"))
    }
    count = len(columns["image"])
    caption = (
        "Each point is a head, and each line the mean over the heads of a layer. Heads have collapsed if all of them "
        "look far, and at the same patches wherever they look from."
        + shown_of(count, len(samples["image"]), "images", "an even choice of")
    )
    title = f"Where attention looks, {ctx.when}"
    return {"attention": curves(panels, axis="layer", title=title, caption=caption, whole=True)}


def _heads(name: str, values: np.ndarray) -> list[Curve]:
    layers, heads = values.shape
    places = np.arange(1, layers + 1)
    points = Curve(name, np.repeat(places, heads).tolist(), values.flatten().tolist(), line=False)
    return [points, Curve(name, places.tolist(), values.mean(axis=1).tolist())]


@torch.no_grad()
def surviving_patches(ctx: FigureContext, s: HybridSettings) -> dict[str, Picture]:
    """Some images, and what is left of them after each stage of dropping patches."""
    samples = ctx.samples(evaluation.TEST)
    if not samples or not s.drops_before:
        return {}
    x = spread_out(samples, _SHOWN)["image"]
    rows, columns = x.shape[2] // s.patch, x.shape[3] // s.patch
    order = torch.as_tensor(torch.rand(len(x), rows * columns, generator=ctx.generator("patches")), device=x.device)
    drops = lesson(s, ctx.networks, x, order, features=False, relations=False).drops
    shown = ctx.denormalize(x)
    tiles = [shown, *(_with(shown, torch.as_tensor(drop.kept, device=shown.device), (rows, columns)) for drop in drops)]
    labels = ("image", *(f"from block {drop.block + 1}: {drop.kept.shape[1]} of {rows * columns}" for drop in drops))
    why = "at random" if s.mask == "random" else f"by the {_NAMES[s.score_from]}, because they are most like the others"
    return {
        "patches": ImageGrid(
            torch.cat(tiles),
            columns=len(x),
            title=f"Patches that the student sees in training, {ctx.when}",
            caption=f"White patches were dropped {why}."
            + shown_of(len(x), len(samples["image"]), "images", "an even choice of"),
            row_labels=labels,
        )
    }


def _with(images: Tensor, kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images (n, C, H, W) in [0, 1] in which only the patches `kept` (n, k) are not whitened."""
    there = torch.zeros(len(images), grid[0] * grid[1]).scatter(1, kept, 1.0).reshape(-1, 1, *grid)
    side = images.shape[2] // grid[0]
    visible = there.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    return visible * images + (1 - visible) * (_DROPPED + (1 - _DROPPED) * images)
