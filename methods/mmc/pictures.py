"""Pictures of segmentations by a prompted patch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.method import FigureContext, Picture, instance_overlay, shown_of
from fedlab.methods.mmc import views
from fedlab.methods.mmc.settings import MMCSettings
from fedlab.metrics.prompts import prompted_objects
from fedlab.metrics.similarity import THRESHOLDS, PromptSegmentation, unit

_SHOWN = 6


@torch.no_grad()
def prompted(ctx: FigureContext, s: MMCSettings, tokens: Callable[[Tensor], Tensor]) -> dict[str, Picture]:
    """One object of each of six pictures, of the server's test set or of the first client's test samples.

    Args:
        ctx: the pictures' context.
        s: settings.
        tokens: maps views (n, C, H, W) to patch tokens (n, N, D).

    The threshold is the one that is best for other samples: the server's set 'validation', or the client's samples that
    are not shown.
    """
    test, validation = ctx.data.get("test"), ctx.data.get("validation")
    if test is None or validation is None:
        held = ctx.client_test(0) or {}
        test = {name: values[:_SHOWN] for name, values in held.items()}
        validation = {name: values[_SHOWN:] for name, values in held.items()}
    if not all("instances" in part and len(part["instances"]) for part in (test, validation)):
        return {}
    side, judged = s.views.size // s.patch, PromptSegmentation(s.level, 0)
    chosen = {name: values[: ctx.batch_size] for name, values in validation.items()}
    seen = views.fixed_view(s, chosen)
    judged.update(tokens(seen["view"]), seen["instances"], (side, side))
    threshold = float(THRESHOLDS[judged.best()])
    picked = {name: values[:_SHOWN] for name, values in test.items()}
    seen = views.fixed_view(s, picked)
    features = unit(tokens(seen["view"]))
    rows, points, maps, truths = [], [], [], []
    for index, mask in enumerate(seen["instances"].numpy(force=True)):
        thing = next(filter(None, prompted_objects(mask, (side, side), 0)), None)
        if thing is None:
            continue
        rows.append(index)
        maps.append((features[index] @ features[index, thing.innermost]).reshape(side, side))
        row, column = divmod(thing.innermost, side)
        points.append([int((place + 0.5) * s.patch) for place in (row, column)])
        truths.append(torch.from_numpy(thing.pixels).long() - torch.from_numpy(mask < 0).long())
    if not rows:
        return {}
    similarity = torch.stack(maps)
    shown = similarity
    if s.level == "pixel":
        size = tuple(truths[0].shape)
        shown = F.interpolate(similarity[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    mean, std = (seen["view"].new_tensor(values)[:, None, None] for values in (s.views.mean, s.views.std))
    return {
        "prompts": instance_overlay(
            (seen["view"][rows] * std + mean).clamp(0, 1),
            torch.tensor(points),
            similarity,
            shown > threshold,
            torch.stack(truths),
            title=f"Objects found by one prompted patch, {ctx.when}",
            caption=f"The prediction is every patch whose similarity to the prompted one exceeds {threshold:.2f}, a "
            "threshold chosen on other pictures. Held-out pictures; the least similar patch of a picture is black, the "
            "most similar one white." + shown_of(len(rows), len(test["instances"]), "pictures"),
        )
    }
