"""Evaluation of pre-training: reconstruction on the clients, probes and collapse alarms on the server (§7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.blocks.labels import check_classes, server_labels
from fedlab.distill.collapse import TELLING, target_figures
from fedlab.method import EvaluationContext, ServerContext, network
from fedlab.methods.asit import views
from fedlab.methods.asit.networks import Centers, Student, Teacher
from fedlab.methods.asit.settings import ASiTSettings
from fedlab.metrics.reconstruction import MaskedError
from fedlab.probes.classifiers import linear_probe, nearest_neighbors

_START = "start"
_SETS = ("probe", "test")
COLLAPSE = (
    f"collapse: the teacher's targets are nearly equal for all clips or patches (by less than {TELLING:g} ln K), or a "
    "center has left the range of cosines (collapse_alarm)"
)


# on the clients


def evaluate(ctx: EvaluationContext, s: ASiTSettings) -> Mapping[str, np.ndarray]:
    """Statistics of the student's reconstruction of the middle views of the test clips."""
    student, metric = network(ctx.networks, "student", Student), MaskedError()
    generator = ctx.generator("corruption")
    for batch in ctx.batches():
        clean = ctx.networks["normalizer"](views.fixed_windows(s, batch, s.window, 1)[0])
        drawn = views.corruption(s, clean, len(clean), generator)
        with ctx.autocast():
            reconstruction = student.reconstruct(views.corrupted(clean, drawn)).float()
        metric.update(reconstruction, clean, drawn["mask"])
    return metric.state()


# on the server


def features(s: ASiTSettings, networks: nn.ModuleDict, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The teacher's class tokens and mean patch tokens, (n, D) each, means over `windows` views of a clip."""
    mean = mean_tokens(s, networks, batch, "teacher")
    return mean[:, 0], mean[:, 1:].mean(1)


def mean_tokens(s: ASiTSettings, networks: nn.ModuleDict, batch: Mapping[str, Tensor], role: str) -> Tensor:
    """The class token and the patch tokens of a network's backbone, (n, 1 + N, D), means over the views of a clip."""
    backbone = network(networks, role, Teacher).backbone
    seen = views.fixed_windows(s, batch, s.window, s.windows)
    tokens = [backbone(networks["normalizer"](window)[:, None]).float() for window in seen]
    return torch.stack(tokens).mean(0)


@torch.no_grad()
def remember_start(ctx: ServerContext, s: ASiTSettings) -> None:
    """Score the network before training and the raw spectrogram, for comparison with what is learned."""
    if not {"probe", "test"} <= ctx.data.keys():
        return
    check_classes(ctx, "probe")
    start = probe(ctx, s)["probe_accuracy"]

    def raw(batch: Mapping[str, Tensor]) -> Tensor:
        return views.fixed_windows(s, batch, s.window, 1)[0].flatten(1)

    sides = [
        (np.concatenate([raw(b).numpy(force=True) for b in _batches(ctx, n)]), server_labels(ctx, n)) for n in _SETS
    ]
    ctx.private[_START] = torch.tensor([start, linear_probe(*sides[0], *sides[1], s.probe_strength)])


@torch.no_grad()
def probe(ctx: ServerContext, s: ASiTSettings) -> dict[str, float]:
    """Linear probe and 5-NN on the teacher's mean patch token and class token; mean average precision instead of
    accuracy where clips have several labels. ``start_probe_accuracy`` is the untrained network's,
    ``raw_probe_accuracy`` that of the spectrogram itself.
    """
    ctx.networks.eval()
    found = {name: [features(s, ctx.networks, batch) for batch in _batches(ctx, name)] for name in _SETS}
    measured: dict[str, float] = {}
    for index, token in ((1, ""), (0, "_class_token")):
        train, test = (torch.cat([part[index] for part in found[name]]).numpy(force=True) for name in _SETS)
        sides = train, server_labels(ctx, "probe"), test, server_labels(ctx, "test")
        measured[f"probe{token}_accuracy"] = linear_probe(*sides, s.probe_strength)
        measured[f"knn{token}_accuracy"] = nearest_neighbors(*sides)
    if _START in ctx.private:
        measured["start_probe_accuracy"], measured["raw_probe_accuracy"] = ctx.private[_START].tolist()
        measured["probe_gain"] = measured["probe_accuracy"] - measured["start_probe_accuracy"]
    return measured


@torch.no_grad()
def collapse(ctx: ServerContext, s: ASiTSettings) -> dict[str, float]:
    """Whether the teacher's targets still distinguish clips and patches.

    By kind of token: ``target_entropy`` of a single target and ``marginal_entropy`` of the mean target, both over
    ln K, and ``center_norm`` over √K. ``collapse_alarm`` is 1 where the two entropies differ by less than 0.01, since
    then all targets are alike, be they uniform or all for one prototype, or where the center has left the cosines'
    range. Where centers are the clients' own, the test clips' mean stands in.
    """
    ctx.networks.eval()
    centers = network(ctx.networks, "centers", Centers)
    teacher = ctx.networks["teacher"]
    parts = [
        teacher(ctx.networks["normalizer"](views.fixed_windows(s, batch, s.window, 1)[0]))
        for batch in _batches(ctx, "test")
    ]
    measured: dict[str, float] = {}
    alarm = False
    for kind, held in (("classes", centers.classes.value), ("patches", centers.patches.value)):
        logits = torch.cat([getattr(part, kind) for part in parts]).float()
        center = logits.mean(0) if s.teacher_sync == "local" else held
        figures = target_figures(logits, center, s.teacher_temperature[1])
        measured |= {f"{name}_{kind}": value for name, value in figures._asdict().items()}
        alarm |= figures.collapsed
    return {**measured, "collapse_alarm": float(alarm)}


def _batches(ctx: ServerContext, name: str) -> Any:
    return ctx.iterate(ctx.data[name], ctx.batch_size)
