"""What is measured: how well experts are imitated, tasks on frozen features, and whether codes tell anything (§7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.distill.collapse import target_figures
from fedlab.distill.prototypes import sharpened
from fedlab.errors import ConfigError
from fedlab.method import EvaluationContext, ServerContext, WorkContext, network
from fedlab.methods.gpfm import losses
from fedlab.methods.gpfm.networks import Centers, Encoder, imitated
from fedlab.methods.gpfm.settings import EXPERTS, GPFMSettings, used
from fedlab.methods.gpfm.views import whole_tiles
from fedlab.metrics.ranking import average_ranks
from fedlab.probes.classifiers import linear_probe

Columns = Mapping[str, Tensor]
_BATCH = 256


def features(s: GPFMSettings, networks: nn.ModuleDict, images: Tensor, part: str) -> tuple[Tensor, Tensor]:
    """Class tokens (n, D) and patch tokens (n, N, D) of whole tiles, by the teacher's or the student's backbone."""
    tokens = network(networks, part, Encoder).backbone(whole_tiles(s, images))
    return tokens[:, 0], tokens[:, 1:]


@torch.no_grad()
def client_sums(ctx: EvaluationContext, s: GPFMSettings) -> dict[str, np.ndarray]:
    """For every expert, the sums of cos(g(f(x)), E(x)) of class tokens and of patches, and the number of tiles.

    A tile counts with the mean over its patches. The sums are 0 of 0 tiles for experts that are not held here.
    """
    sums = {name: np.zeros(3) for name in used(s)}
    student = network(ctx.networks, "student", Encoder)
    for batch in ctx.batches():
        crops = whole_tiles(s, batch["image"])
        tokens = student.backbone(crops)
        for name in ctx.holds:
            wanted, made = ctx.asset(name)(crops), imitated(ctx.networks[EXPERTS], name, tokens).double()
            seen = losses.resized(wanted.patches, wanted.grid, student.backbone.grid).double()
            classes = torch.cosine_similarity(made[:, 0], wanted.classes.double(), dim=-1)
            patches = torch.cosine_similarity(made[:, 1:], seen, dim=-1).mean(1)
            sums[name] += [float(classes.sum()), float(patches.sum()), len(crops)]
    return sums


def values(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """``cosine_NAME`` and ``patch_cosine_NAME`` for every expert that somebody holds, and their means over experts."""
    held = {name: total[:2] / total[2] for name, total in sums.items() if total[2]}
    means = [("", np.mean(list(held.values()), axis=0))] if held else []
    return {
        f"{kind}{name and '_'}{name}": float(value)
        for name, pair in [*held.items(), *means]
        for kind, value in zip(("cosine", "patch_cosine"), pair, strict=True)
    }


def server_values(ctx: ServerContext, s: GPFMSettings) -> dict[str, float]:
    """The metrics on tiles of the server (§7): tasks on its sets 'probe' and 'test', and figures of codes on 'test'.

    Tasks are measured of the features that ``judged`` names. If the server holds experts, the rank of each part and
    expert among all of them is averaged over the tasks.
    """
    probe, test = ctx.data.get("probe"), ctx.data.get("test")
    if not test:
        return {}
    found = _codes(ctx, s, test)
    if not probe or s.judged not in ("teacher", "student", *ctx.holds):
        return found
    others = [name for name in ("teacher", "student", *ctx.holds) if name != s.judged] if ctx.holds else []
    judged = [s.judged, *others]
    scores = {
        name: tasks(s, _vectors(ctx, s, name, probe), probe, _vectors(ctx, s, name, test), test) for name in judged
    }
    found |= scores[s.judged]
    if len(judged) > 1:
        ranks = average_ranks([list(scores[name].values()) for name in judged])
        found |= {f"rank_{name}": float(rank) for name, rank in zip(judged, ranks, strict=True)}
    return found


def tasks(s: GPFMSettings, train: np.ndarray, probe: Columns, tested: np.ndarray, test: Columns) -> dict[str, float]:
    """Accuracies of logistic regression for every task, with all tiles of the set 'probe' and with `few` of them."""
    found: dict[str, float] = {}
    for column in s.tasks:
        if column not in probe or column not in test:
            known = [name for name in probe if name in test and probe[name].ndim == 1]
            expected = f"columns of labels in the server's sets 'probe' and 'test', such as {', '.join(known)}"
            raise ConfigError("method.tasks", column, expected, "change it")
        labels, wanted = (part[column].numpy(force=True) for part in (probe, test))
        for name, count in ((f"accuracy_{column}", len(labels)), (f"few_accuracy_{column}", s.few)):
            found[name] = linear_probe(train[:count], labels[:count], tested, wanted)
    return found


@torch.no_grad()
def _vectors(ctx: ServerContext, s: GPFMSettings, part: str, columns: Columns) -> np.ndarray:
    def compute(images: Tensor) -> Tensor:
        if part in ctx.holds:
            classes: Tensor = ctx.asset(part)(whole_tiles(s, images)).classes
            return classes
        return features(s, ctx.networks, images, part)[0]

    return _evaluated(ctx, columns, compute)


def _evaluated(ctx: WorkContext, columns: Columns, compute: Callable[[Tensor], Tensor]) -> np.ndarray:
    ctx.networks.eval()
    images = {"image": columns["image"]}
    vectors: np.ndarray = ctx.computed(images, lambda batch: compute(batch["image"]), _BATCH).numpy(force=True)
    return vectors


@torch.no_grad()
def _codes(ctx: ServerContext, s: GPFMSettings, test: Columns) -> dict[str, float]:
    """``delta_h`` of L_dino's code, the figures of its targets, and ``collapse_alarm``."""
    ctx.networks.eval()
    student, teacher = (network(ctx.networks, role, Encoder) for role in ("student", "teacher"))
    center, temperature = network(ctx.networks, "centers", Centers).classes.value, s.teacher_temperature[1]

    def of(part: Encoder) -> Tensor:
        found = _evaluated(ctx, test, lambda images: part.logits(part.backbone(whole_tiles(s, images))[:, 0]))
        return ctx.place(torch.from_numpy(found))

    taught = of(teacher)
    figures = target_figures(taught, center, temperature)
    targets = sharpened(taught, center, temperature)
    alike = s.dino_weight > 0 and figures.collapsed
    if alike:
        ctx.alarm("the targets of class tokens are nearly alike for all tiles (collapse_alarm)")
    return {
        "delta_h": losses.code_gap(targets, of(student), s.student_temperature),
        "target_entropy": figures.target_entropy,
        "marginal_entropy": figures.marginal_entropy,
        "center_norm": figures.center_norm,
        "collapse_alarm": float(alike),
    }
