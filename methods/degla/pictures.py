"""Pictures of DeGLA's choices: captions with their scores, and how often each kind of false caption is recognized."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fedlab.data.files.captions import NEGATIVE, decode, kinds_of
from fedlab.method import Bar, FigureContext, Picture, bar_chart, images_with_bars, shown_of
from fedlab.methods.degla.batches import is_caption
from fedlab.methods.degla.evaluation import caption_similarities
from fedlab.metrics import CaptionChoice
from fedlab.models.clip import as_clip

_SHOWN, _COUNTED = 4, 512


def figures(ctx: FigureContext, apart: Collection[str]) -> dict[str, Picture]:
    """Some scenes with their captions, and the accuracy by kind, for the available test samples."""
    held = ctx.samples("composition")
    if not kinds_of(held):
        return {}
    columns = {name: values[:_COUNTED] for name, values in held.items()}
    with torch.no_grad():
        similarities = caption_similarities(as_clip(ctx.networks["student"]), columns)
    shown = min(_SHOWN, len(columns["text"]))
    captions = images_with_bars(
        ctx.denormalize(columns["image"][:shown]),
        [_scores(columns, similarities, sample, ctx.task.vocabulary) for sample in range(shown)],
        axis="cosine of image and caption",
        title=f"Captions and their scores {ctx.when}",
        caption="Green: the true caption. Red: a false one that scores at least as high. Gray: a false one that scores "
        "lower." + shown_of(shown, len(held["text"]), "images"),
    )
    kinds = bar_chart(
        _kinds(columns, similarities, apart),
        axis="images nearer to their caption than to the false one, %",
        most=100,
        title=f"Accuracy by kind of false caption {ctx.when}",
        caption="Black: accuracy of guessing. Gray: kinds that are not trained on, or not part of the pooled accuracy."
        + shown_of(len(columns["text"]), len(held["text"]), "images"),
    )
    return {"captions": captions, "kinds": kinds}


def _scores(
    columns: Mapping[str, Tensor], similarities: Mapping[str, Tensor], sample: int, vocabulary: Sequence[str]
) -> list[Bar]:
    """Captions of a sample with their cosines, the true one first."""
    true = float(similarities["text"][sample])
    bars = [Bar(decode(columns["text"][sample].tolist(), vocabulary), true, "good")]
    for kind in kinds_of(columns):
        ids = columns[NEGATIVE + kind][sample]
        for place in is_caption(ids).nonzero().flatten().tolist():
            value = float(similarities[kind][sample, place])
            text = f"{decode(ids[place].tolist(), vocabulary)}  [{kind}]"
            bars.append(Bar(text, value, "bad" if value >= true else "plain"))
    return bars


def _kinds(columns: Mapping[str, Tensor], similarities: Mapping[str, Tensor], apart: Collection[str]) -> list[Bar]:
    """Accuracy of every kind that occurs, in per cent, with its chance."""
    choice, chance = CaptionChoice(), {}
    for kind in kinds_of(columns):
        present = is_caption(columns[NEGATIVE + kind])
        choice.update(kind, similarities["text"], similarities[kind], present)
        numbers = present.sum(1)[present.any(1)]
        if len(numbers):
            chance[kind] = float((1 / (1 + numbers)).mean())
    found = choice.compute(apart)
    return [
        Bar(
            kind.replace("_", " "),
            100 * found[f"accuracy_{kind}"],
            "plain" if kind in apart else "good",
            100 * chance[kind],
        )
        for kind in chance
    ]
