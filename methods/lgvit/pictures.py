"""Pictures of early exits: accuracy over speed-up, where each class leaves, and samples that leave at each exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlab.blocks.pictures import in_batches, spread_out
from fedlab.method import FigureContext, ImageGrid, Picture, Plot, shown_of
from fedlab.methods.lgvit.evaluation import every_logits
from fedlab.methods.lgvit.networks import run_all
from fedlab.methods.lgvit.settings import LGViTSettings
from fedlab.methods.lgvit.stopping import first_exit
from fedlab.metrics.exits import ExitCurve, ExitHistogram

_SAMPLES, _CLIENTS, _CLASSES, _EXAMPLES = 600, 20, 12, 10
_FONT = 8


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
    from matplotlib.figure import Figure

    curve = ExitCurve(sorted({*s.curve, s.limit}), s.exits, s.depth)
    right = logits.argmax(2) == labels[:, None]
    rows = torch.arange(len(labels), device=labels.device)
    for τ, one in curve.at.items():
        places = first_exit(logits[:, :-1], s.rule, τ)
        one.update(places, right[rows, places])
    alone = 100 * right.float().mean(0)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    chart: Any = figure.subplots()
    found = [(one.speedup, 100 * one.accuracy) for one in curve.at.values()]
    chart.plot(*zip(*found, strict=True), marker="o", markersize=4, label=f"samples leave by the rule {s.rule}")
    apart, named = 0.03 * (s.depth / s.exits[0] - 1), list[float]()
    for (across, up), τ in zip(found, curve.at, strict=True):
        if all(abs(across - other) > apart for other in named):  # or the numbers would lie on each other
            named.append(across)
            chart.annotate(f"{τ:g}", (across, up), (0, 5), textcoords="offset points", fontsize=_FONT - 1, ha="center")
    now = curve.at[s.limit]
    chart.plot(now.speedup, 100 * now.accuracy, "o", markersize=10, fillstyle="none", color="black", label="threshold")
    fixed = [s.depth / layer for layer in (*s.exits, s.depth)]
    chart.plot(fixed, alone.tolist(), "x", color="#c0392b", label="all samples leave after one layer")
    for across, up, layer in zip(fixed, alone.tolist(), (*s.exits, s.depth), strict=True):
        place = {"textcoords": "offset points", "fontsize": _FONT - 1, "ha": "center", "color": "#c0392b"}
        chart.annotate(f"{layer}", (across, up), (0, -12), **place)
    chart.set_xlabel(f"speed-up: {s.depth} layers over the mean layer", fontsize=_FONT)
    chart.set_ylabel("accuracy in %", fontsize=_FONT)
    chart.tick_params(labelsize=_FONT)
    chart.grid(alpha=0.3)
    chart.legend(fontsize=_FONT)
    text = (
        f"Numbers on the line are thresholds, numbers at crosses layers; the circle is the run's, {s.limit:g}. {whose}"
    )
    return Plot(figure, title, text)


def _map(ctx: FigureContext, s: LGViTSettings, places: Tensor, labels: Tensor, title: str, caption: str) -> Plot:
    """For each class, the share of its samples that leave after each layer, in percent."""
    from matplotlib.figure import Figure

    names = ctx.task.class_names
    classes = range(min(len(names), _CLASSES))
    layers = (*s.exits, s.depth)
    rows = []
    for number in classes:
        histogram = ExitHistogram(s.exits, s.depth)
        mine = places[labels == number]
        histogram.update(mine, torch.ones_like(mine, dtype=torch.bool))
        found = histogram.compute()
        rows.append([100 * found.get(f"left_at_{layer}", 0.0) for layer in layers])
    figure = Figure(figsize=(1.5 + 0.75 * len(layers), 1.0 + 0.3 * len(rows)), layout="constrained")
    chart: Any = figure.subplots()
    chart.imshow(rows, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            color = "white" if value > 60 else "black"
            chart.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=_FONT, color=color)
    chart.set_xticks(range(len(layers)), _layer_names(s), fontsize=_FONT)
    chart.set_yticks(range(len(rows)), [names[number] for number in classes], fontsize=_FONT, parse_math=False)
    chart.set_xlabel("layer after which samples leave", fontsize=_FONT)
    text = f"Percent of the samples of each class; {caption}" + shown_of(len(rows), len(names), "classes")
    return Plot(figure, title, text)


def _examples(ctx: FigureContext, s: LGViTSettings, x: Tensor, places: Tensor, title: str, rule: str) -> ImageGrid:
    """The first samples that leave after each layer, one row for each."""
    shown = ctx.denormalize(x)
    tiles = []
    for place in range(len(s.exits) + 1):
        mine = shown[(places == place).to(shown.device)][:_EXAMPLES]
        blank = torch.ones(_EXAMPLES - len(mine), *shown.shape[1:], device=shown.device)
        tiles.append(torch.cat([mine, blank]))
    names = tuple(f"layer {name}" for name in _layer_names(s))
    return ImageGrid(torch.cat(tiles), _EXAMPLES, title, f"The first that leave after each layer; {rule}.", names)


def _layer_names(s: LGViTSettings) -> Sequence[str]:
    return [*(f"{layer}" for layer in s.exits), f"{s.depth} (last)"]
