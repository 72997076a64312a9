"""Pictures of early exits: accuracy over speed-up, where each class leaves, and samples that leave at each exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedlab.blocks.pictures import in_batches, spread_out
from fedlab.method import FigureContext, ImageGrid, Picture, Plot, Point, curve_with_marks, percentages, shown_of
from fedlab.methods.lgvit.evaluation import every_logits
from fedlab.methods.lgvit.networks import run_all
from fedlab.methods.lgvit.settings import LGViTSettings
from fedlab.methods.lgvit.stopping import first_exit
from fedlab.metrics.exits import ExitCurve, ExitHistogram

_SAMPLES, _CLIENTS, _CLASSES, _EXAMPLES = 600, 20, 12, 10


@torch.no_grad()
def exit_pictures(ctx: FigureContext, s: LGViTSettings) -> dict[str, Picture]:
    """The pictures, of the server's set 'test' or of the clients' test samples; none where neither is at hand."""
    columns, whose = _tests(ctx)
    if not columns:
        return {}
    x, labels = columns["image"], columns["label"]
    logits = torch.cat(
        [every_logits(run_all(ctx.networks, batch["image"], s.exits)) for batch in in_batches(columns, ctx.batch_size)]
    )
    places = first_exit(logits[:, :-1], s.rule, s.limit)
    rule = f"rule {s.rule}, threshold {s.limit:g}"
    return {
        "speed": _speed(s, logits, labels, f"Accuracy and speed-up {ctx.when}", whose),
        "exit_map": _map(ctx, s, places, labels, f"Where samples leave {ctx.when}", f"{rule}. {whose}"),
        "exits": _examples(ctx, s, x, places, f"Samples by the layer after which they leave {ctx.when}", rule),
    }


def _tests(ctx: FigureContext) -> tuple[Mapping[str, Tensor], str]:
    """Labeled test samples, and whose they are in a sentence."""
    if "label" in ctx.data.get("test", {}):
        shown, whose = ctx.data["test"], "Samples of the server's set 'test'."
    else:
        count = min(_CLIENTS, len(ctx.client_names))
        found = [ctx.client_test(client) for client in range(count)]
        parts = [part for part in found if part and len(part["label"])]
        if not parts:
            return {}, ""
        shown = {name: torch.cat([part[name] for part in parts]) for name in ("image", "label")}
        whose = "Test samples of the clients." + shown_of(count, len(ctx.client_names), "clients")
    total = len(shown["label"])
    chosen = spread_out({name: shown[name] for name in ("image", "label")}, _SAMPLES)
    return chosen, whose + shown_of(len(chosen["label"]), total, "samples", "evenly chosen")


def _speed(s: LGViTSettings, logits: Tensor, labels: Tensor, title: str, whose: str) -> Plot:
    """Accuracy over speed-up, for the thresholds of the curve, and for all samples leaving at one exit."""
    curve = ExitCurve(sorted({*s.curve, s.limit}), s.exits, s.depth)
    right = logits.argmax(2) == labels[:, None]
    rows = torch.arange(len(labels), device=labels.device)
    for τ, one in curve.at.items():
        places = first_exit(logits[:, :-1], s.rule, τ)
        one.update(places, right[rows, places])
    alone, layers = (100 * right.float().mean(0)).tolist(), (*s.exits, s.depth)
    caption = "Numbers on the line are thresholds, numbers at crosses layers; the circle is the threshold of the run"
    return curve_with_marks(
        [Point(one.speedup, 100 * one.accuracy, f"{τ:g}") for τ, one in curve.at.items()],
        [Point(s.depth / layer, up, f"{layer}") for layer, up in zip(layers, alone, strict=True)],
        list(curve.at).index(s.limit),
        axes=(f"speed-up: {s.depth} layers over the mean layer", "accuracy in %"),
        legend=(f"samples leave by the rule {s.rule}", "threshold", "all samples leave after one layer"),
        title=title,
        caption=f"{caption}, {s.limit:g}. {whose}",
    )


def _map(ctx: FigureContext, s: LGViTSettings, places: Tensor, labels: Tensor, title: str, caption: str) -> Plot:
    """For each class, the share of its samples that leave after each layer, in percent."""
    names = ctx.task.class_names
    shown = names[:_CLASSES]
    rows = []
    for number in range(len(shown)):
        histogram = ExitHistogram(s.exits, s.depth)
        mine = places[labels == number]
        histogram.update(mine, torch.ones_like(mine, dtype=torch.bool))
        found = histogram.compute()
        rows.append([100 * found.get(f"left_at_{layer}", 0.0) for layer in (*s.exits, s.depth)])
    return percentages(
        rows,
        shown,
        _layer_names(s),
        axis="layer after which samples leave",
        title=title,
        caption=f"Percent of the samples of each class; {caption}" + shown_of(len(shown), len(names), "classes"),
    )


def _examples(ctx: FigureContext, s: LGViTSettings, x: Tensor, places: Tensor, title: str, rule: str) -> ImageGrid:
    """The first samples that leave after each layer, one row for each."""
    shown = ctx.denormalize(x)
    tiles = []
    for place in range(len(s.exits) + 1):
        mine = shown[(places == place).nonzero().flatten()[:_EXAMPLES].tolist()]
        blank = torch.ones(_EXAMPLES - len(mine), *shown.shape[1:], device=shown.device)
        tiles.append(torch.cat([mine, blank]))
    names = tuple(f"layer {name}" for name in _layer_names(s))
    return ImageGrid(torch.cat(tiles), _EXAMPLES, title, f"The first that leave after each layer; {rule}.", names)


def _layer_names(s: LGViTSettings) -> Sequence[str]:
    return [*(f"{layer}" for layer in s.exits), f"{s.depth} (last)"]
