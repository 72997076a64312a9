"""DeGLA's choices to look at: captions with their scores, and how often each kind of false caption is seen through."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlab.context import FigureContext
from fedlab.data.captions import NEGATIVE, decode, kinds_of
from fedlab.methods.degla.batches import is_caption
from fedlab.methods.degla.evaluation import caption_similarities
from fedlab.metrics import CaptionChoice
from fedlab.pictures import Picture, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN, _COUNTED = 4, 512
_TRUE, _BEATEN, _WRONG = "#2a7f4f", "#9aa5b1", "#c0392b"
_LONGEST = 60  # characters of a caption


def figures(ctx: FigureContext, apart: Collection[str]) -> dict[str, Picture]:
    """Some scenes with their captions, and accuracy by kind, of whatever test samples are at hand."""
    held = ctx.data.get("composition") or ctx.client_test(0)
    if not held or not kinds_of(held) or not len(held["text"]):
        return {}
    columns = {name: values[:_COUNTED] for name, values in held.items()}
    with torch.no_grad():
        similarities = caption_similarities(ctx.networks["student"], columns)
    when = f"after round {ctx.round}" if ctx.round else "before round 1"
    return {
        "captions": _captions(ctx, columns, similarities, when),
        "kinds": _kinds(columns, similarities, apart, when),
    }


def _captions(ctx: FigureContext, columns: Mapping[str, Tensor], similarities: Mapping[str, Tensor], when: str) -> Plot:
    from matplotlib.figure import Figure

    count = min(_SHOWN, len(columns["text"]))
    images = ctx.denormalise(columns["image"][:count]).permute(0, 2, 3, 1).numpy()
    rows = [_scores(columns, similarities, sample, ctx.task.vocabulary) for sample in range(count)]
    heights = [max(4, len(row)) for row in rows]
    figure = Figure(figsize=(9.5, 0.24 * sum(heights) + 0.55 * count), layout="constrained")
    axes = figure.subplots(count, 2, squeeze=False, width_ratios=(1, 3.2), height_ratios=heights)
    for (picture, chart), image, row in zip(axes, images, rows, strict=True):
        picture.imshow(image.clip(0, 1), interpolation="nearest")
        picture.set_axis_off()
        _bars(chart, row)
    axes[-1][1].set_xlabel("cosine of image and caption", fontsize=8)
    return Plot(
        figure,
        f"Captions and their scores {when}",
        "Green: the true caption. Red: a false one that scores as high or higher. Grey: a false one seen through.",
    )


def _scores(
    columns: Mapping[str, Tensor], similarities: Mapping[str, Tensor], sample: int, vocabulary: Sequence[str]
) -> list[tuple[str, float]]:
    """Captions of a sample with their cosines, the true one first."""
    captions = [(decode(columns["text"][sample].tolist(), vocabulary), float(similarities["text"][sample]))]
    for kind in kinds_of(columns):
        ids = columns[NEGATIVE + kind][sample]
        for place in is_caption(ids).nonzero().flatten().tolist():
            words = f"{decode(ids[place].tolist(), vocabulary)}  [{kind}]"
            captions.append((words, float(similarities[kind][sample, place])))
    return captions


def _bars(chart: Axes, row: Sequence[tuple[str, float]]) -> None:
    names = [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text, _ in row]
    values = [value for _, value in row]
    colours = [_TRUE, *(_WRONG if value >= values[0] else _BEATEN for value in values[1:])]
    chart.barh(range(len(row)), values, color=colours, height=0.7)
    chart.axvline(values[0], color=_TRUE, linewidth=0.8, linestyle=":")
    chart.set_yticks(range(len(row)), names, fontsize=7.5, parse_math=False)
    chart.invert_yaxis()
    chart.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        chart.spines[side].set_visible(False)


def _kinds(
    columns: Mapping[str, Tensor], similarities: Mapping[str, Tensor], apart: Collection[str], when: str
) -> Plot:
    from matplotlib.figure import Figure

    choice, chance = CaptionChoice(), {}
    for kind in kinds_of(columns):
        present = is_caption(columns[NEGATIVE + kind])
        choice.update(kind, similarities["text"], similarities[kind], present)
        numbers = present.sum(1)[present.any(1)]
        chance[kind] = float((1 / (1 + numbers)).mean()) if len(numbers) else 0.0
    found = choice.compute(apart)
    kinds = [kind for kind in chance if f"accuracy_{kind}" in found]
    figure = Figure(figsize=(7.5, 0.36 * len(kinds) + 0.9), layout="constrained")
    chart: Any = figure.subplots()
    shares = [100 * found[f"accuracy_{kind}"] for kind in kinds]
    bars = chart.barh(range(len(kinds)), shares, height=0.65, color=[_BEATEN if k in apart else _TRUE for k in kinds])
    chart.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    for place, kind in enumerate(kinds):
        chart.plot([100 * chance[kind]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.2)
    chart.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=9)
    chart.invert_yaxis()
    chart.set_xlim(0, 108)
    chart.set_xlabel("images nearer to their caption than to the false one, %", fontsize=8)
    for side in ("top", "right"):
        chart.spines[side].set_visible(False)
    caption = "Black: chance. Grey: kinds that are not trained on, or not pooled."
    return Plot(figure, f"Accuracy by kind of false caption {when}", caption)
