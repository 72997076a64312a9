"""Evaluation on clients and on the server: segmentation, agreement on held-out crops, signs of collapse (§7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.collapse import target_figures
from fedlab.distill.mask_matching import dice
from fedlab.distill.precision import full_precision
from fedlab.method import (
    Batch,
    EvaluationContext,
    Features,
    FigureContext,
    Method,
    Picture,
    ServerContext,
    Task,
    network,
)
from fedlab.methods.s2_uniseg.judging import Judgement, found_in
from fedlab.methods.s2_uniseg.matching import matched, regions_of
from fedlab.methods.s2_uniseg.networks import Centers, Student, Teacher, pyramid_of, targets_of
from fedlab.methods.s2_uniseg.pictures import segmented
from fedlab.methods.s2_uniseg.settings import KINDS, S2UniSegSettings
from fedlab.methods.s2_uniseg.views import crops_of, normalized, training_views

COLLAPSE = (
    "collapse: the teacher's targets of one kind of region are nearly equal everywhere (by less than 0.01 ln K), or a "
    "center has left the range of cosines (collapse_alarm)"
)
UNIAP = "UniAP of one image"
_START = "start_"
_KEPT = ("ap", "ar", "region_recall", "pixel_accuracy", "joined")  # also of the untrained networks
_AGREEMENT = "agreement"


class Segmenting(Method[S2UniSegSettings]):
    """The hooks of evaluation; the other half of the method is `fedlab.methods.s2_uniseg.method.S2UniSeg`."""

    feature_parts = ("teacher", "student")

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Features at stride 4 of whole images, and their mean."""
        maps = pyramid_of(networks, part, normalized(self.settings, batch["image"]))[0].float()
        tokens = maps.flatten(2).transpose(1, 2)
        return Features(tokens.mean(1), tokens, (maps.shape[2], maps.shape[3]))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, Any]:
        seen = Seen(self.settings, ctx.task)
        generator = ctx.generator("crops")
        for batch in ctx.batches():
            with ctx.autocast():
                seen.update(ctx.networks, batch, generator)
        return seen.state()

    def evaluation_values(self, sums: Mapping[str, Any], task: Task) -> dict[str, float]:
        return values(self.settings, sums, task)

    def server_prepare(self, ctx: ServerContext) -> None:
        remember_start(ctx, self.settings)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        return server_values(ctx, self.settings)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return segmented(ctx, self.settings)


class Agreement(NamedTuple):
    """How well student and teacher agree on crops of images that are not trained on.

    Args:
        sums: (5,) float64: Dice of matched pairs, number of pairs, H(p, s) of matched pairs, H(p, s) of a region and a
            query of the same kind in another image, number of these.
        logits: t (M, K) of the teacher's regions.
        semantic: (M,) their kinds.
    """

    sums: np.ndarray
    logits: Tensor
    semantic: Tensor


@torch.no_grad()
def agreement(s: S2UniSegSettings, networks: nn.ModuleDict, images: Tensor, generator: torch.Generator) -> Agreement:
    """The agreement on crops of images (n, C, H, W) in [0, 1], drawn as in training."""
    with full_precision(images):  # changes of color are not made for half precision
        batch = training_views(s, {"image": images}, generator)
    student, teacher = network(networks, "student", Student), network(networks, "teacher", Teacher)
    regions = regions_of(s, pyramid_of(networks, "teacher", batch["whole"]))
    t = teacher.codes(regions.features).float()
    made = student.decode(pyramid_of(networks, "student", batch["crops"]))
    pairs = matched(s, regions, len(images), crops_of(batch), made.masks[-1])
    rows = pairs.regions
    kinds, owners = regions.semantic[rows], regions.images[rows]
    p = targets_of(t[rows], kinds, _centers(s, networks, t, regions.semantic), s.teacher_temperature[1])
    logits = student.logits(made.queries[-1][pairs.views, pairs.queries]).float()
    crossed = -p.double() @ F.log_softmax(logits / s.student_temperature, dim=1).double().T
    others = (owners[:, None] != owners) & (kinds[:, None] == kinds)
    overlap = dice((made.masks[-1][pairs.views, pairs.queries].float() > 0).float(), pairs.masks)
    sums = (overlap.sum(), crossed.diagonal().sum(), crossed[others].sum(), others.sum())
    dices, matching, mismatched, count = (float(value) for value in sums)
    return Agreement(np.array([dices, len(pairs), matching, mismatched, count]), t, regions.semantic)


class Seen:
    """All that is measured on some images, from sums that add up over clients.

    Args:
        settings: the method's.
        task: facts about the data.
    """

    def __init__(self, settings: S2UniSegSettings, task: Task) -> None:
        self._settings = settings
        self._judged = Judgement(settings, task.num_classes if "mask" in task.columns else 0)
        self._agreement = np.zeros(5)

    def update(self, networks: nn.ModuleDict, batch: Mapping[str, Tensor], generator: torch.Generator) -> Agreement:
        """Add images, with true masks in the columns ``instances`` and ``mask`` if there are any."""
        s, images = self._settings, batch["image"]
        found = agreement(s, networks, images, generator)
        self._agreement += found.sums
        truths = [batch[name].numpy(force=True) for name in ("instances", "mask") if name in batch]
        if truths:
            size = (truths[0].shape[1], truths[0].shape[2])
            instances, classes = (batch[n].numpy(force=True) if n in batch else None for n in ("instances", "mask"))
            for row, seen in enumerate(found_in(s, networks, images, size)):
                self._judged.update(seen, *(None if true is None else true[row] for true in (instances, classes)))
        return found

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition."""
        return {**self._judged.state(), _AGREEMENT: self._agreement.copy()}


def values(s: S2UniSegSettings, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
    """The figures of `Judgement`, and ``pseudo_dice``, ``matched_h`` (over ln K) and ``delta_h``.

    ΔH is by how many nats the cross-entropy of a region's target and a query's code is larger if they belong to
    different images. It is 0 for codes that tell nothing of the region, whatever their distribution.
    """
    judged = Judgement(s, task.num_classes if "mask" in task.columns else 0)
    judged.merge(sums)
    measured = judged.compute()
    overlap, pairs, matching, crossed, others = sums[_AGREEMENT].tolist()
    if pairs:
        measured |= {"pseudo_dice": overlap / pairs, "matched_h": matching / pairs / math.log(s.prototypes)}
    if pairs and others:
        measured["delta_h"] = crossed / others - matching / pairs
    return measured


# on the server


def remember_start(ctx: ServerContext, s: S2UniSegSettings) -> None:
    """Judge the untrained networks, for comparison with what is learned."""
    if "test" in ctx.data:
        for name, value in _measured(ctx, s)[0].items():
            if name in _KEPT:
                ctx.private[f"{_START}{name}"] = torch.tensor(value, dtype=torch.float64)


def server_values(ctx: ServerContext, s: S2UniSegSettings) -> dict[str, float]:
    """The figures of the server's set ``test``, the same before training and by how much they have grown, entropies
    and centers of the teacher's targets by kind, and the collapse alarm; the time of UniAP is measured beside them.
    """
    if "test" not in ctx.data:
        return {}
    measured, found = _measured(ctx, s)
    for name, start in sorted(ctx.private.items()):
        metric = name.removeprefix(_START)
        if metric in measured:
            measured |= {name: float(start), f"{metric}_gain": measured[metric] - float(start)}
    logits, semantic = torch.cat([part.logits for part in found]), torch.cat([part.semantic for part in found])
    centers, collapsed = _centers(s, ctx.networks, logits, semantic), False
    for kind, word in enumerate(KINDS):
        rows = logits[semantic == bool(kind)]
        if len(rows):
            figures = target_figures(rows, centers[kind], s.teacher_temperature[1])
            measured |= {f"{name}_{word}": value for name, value in figures._asdict().items()}
            collapsed |= figures.collapsed
    if collapsed:
        ctx.alarm(COLLAPSE)
    _time(ctx, s)
    return {**measured, "collapse_alarm": float(collapsed)}


def _measured(ctx: ServerContext, s: S2UniSegSettings) -> tuple[dict[str, float], list[Agreement]]:
    ctx.networks.eval()
    seen, generator = Seen(s, ctx.task), ctx.generator("held-out crops")
    batches = ctx.iterate(ctx.data["test"], ctx.batch_size)
    found = [seen.update(ctx.networks, batch, generator) for batch in batches]
    return values(s, seen.state(), ctx.task), found


def _centers(s: S2UniSegSettings, networks: nn.ModuleDict, logits: Tensor, semantic: Tensor) -> Tensor:
    """The centers (2, K); where each client has its own, the means of the logits at hand stand in."""
    if s.teacher_sync != "local":
        return network(networks, "centers", Centers).values
    none = logits.new_zeros(1, logits.shape[1])
    rows = [logits[semantic == bool(kind)] for kind, _ in enumerate(KINDS)]
    return torch.stack([torch.cat([part, none])[: max(1, len(part))].mean(0) for part in rows])


@torch.no_grad()
def _time(ctx: ServerContext, s: S2UniSegSettings) -> None:
    """Measure UniAP image by image."""
    images = ctx.data["test"]["image"][: s.timed]
    for number in ctx.steps(len(images)):
        pyramid = pyramid_of(ctx.networks, "teacher", normalized(s, images[number : number + 1]))
        with ctx.timed(UNIAP):
            regions_of(s, pyramid)
