"""What the teacher's frozen patch tokens tell about objects (§3.5), on clients and on the server; signs of collapse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.distill.collapse import target_figures
from fedlab.distill.directions import directions
from fedlab.distill.prototypes import prototype_cross_entropy, sharpened
from fedlab.errors import DataError
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
from fedlab.methods.mmc import views
from fedlab.methods.mmc.networks import Centers, Student, Teacher
from fedlab.methods.mmc.pictures import prompted
from fedlab.methods.mmc.settings import MMCSettings
from fedlab.metrics.reconstruction import MaskedError
from fedlab.metrics.similarity import PromptSegmentation, SimilarityGap, zero_shot

_START = "start/"
_GAINS = ("miou", "miou_random", "auroc", "linked_auroc")
_CLIENT = "client_threshold"
_HALVES = ("validation", "test")
_PATCHES = 8  # about so many of each picture show whether targets have collapsed
COLLAPSE = (
    "collapse: the teacher's patch targets are nearly equal everywhere (by less than 0.01 ln K), or the center has "
    "left the range of cosines (collapse_alarm)"
)


def teacher_tokens(networks: nn.ModuleDict) -> Callable[[Tensor], Tensor]:
    """Patch tokens (n, N, D) of views (n, C, H, W): of the teacher's backbone, after its last normalization."""
    backbone = network(networks, "teacher", Teacher).backbone
    return lambda view: backbone(view)[:, 1:].float()


def pixel_tokens(s: MMCSettings) -> Callable[[Tensor], Tensor]:
    """Raw pixels of each patch, (n, N, C · p²), the simplest features there are."""
    return lambda view: nn.functional.unfold(view, s.patch, stride=s.patch).transpose(1, 2)


class Judgement:
    """Segmentation by prompts, and the similarity of patches, for one kind of feature.

    Args:
        settings: the method's.
    """

    def __init__(self, settings: MMCSettings) -> None:
        self._side = settings.views.size // settings.patch
        self.halves = {half: PromptSegmentation(settings.level, settings.points) for half in _HALVES}
        self.gap, self.linked = SimilarityGap(), SimilarityGap()

    def update(self, tokens: Tensor, seen: Mapping[str, Tensor], half: str) -> None:
        """Add views of one half: `validation` chooses the threshold, `test` is scored."""
        grid = (self._side, self._side)
        self.halves[half].update(tokens, seen["instances"], grid)
        if half == "test":
            self.gap.update(tokens, seen["instances"], grid)
            if "parts" in seen:
                self.linked.update(tokens, seen["instances"], grid, seen["parts"])

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition."""
        return {f"{part}.{name}": value for part, held in self._parts().items() for name, value in held.state().items()}

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        for part, held in self._parts().items():
            held.merge({name[len(part) + 1 :]: value for name, value in sums.items() if name.startswith(f"{part}.")})

    def _parts(self) -> dict[str, Any]:
        return {**self.halves, "gap": self.gap, "linked": self.linked}

    def compute(self) -> dict[str, float]:
        """The figures of `zero_shot` and `SimilarityGap`, and ``linked_auroc``: the AUROC of pairs that show different
        parts of one object, for data that knows parts. Raw pixels can only guess there.
        """
        measured = zero_shot(self.halves["validation"], self.halves["test"]) | self.gap.compute()
        linked = self.linked.compute()
        return measured | ({"linked_auroc": linked["auroc"]} if linked else {})


class ZeroShot(Method[MMCSettings]):
    """The hooks of evaluation; the other half of the method is `fedlab.methods.mmc.method.MMC`."""

    feature_parts = ("teacher", "student")

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Class tokens as vectors, and patch tokens of the whole pictures."""
        tokens = network(networks, part, Teacher).backbone(view := views.whole_view(self.settings, batch)).float()
        rows, columns = (side // self.settings.patch for side in view.shape[2:])
        return Features(tokens[:, 0], tokens[:, 1:], (rows, columns))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return evaluate(ctx, self.settings)

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return values(sums, self.settings)

    def server_prepare(self, ctx: ServerContext) -> None:
        remember_start(ctx, self.settings)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        measured = segment(ctx, self.settings) if scorable(ctx) else {}
        measured |= mechanisms(ctx, self.settings) if "test" in ctx.data else {}
        if measured.get("collapse_alarm"):
            ctx.alarm(COLLAPSE)
        return measured

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return prompted(ctx, self.settings, teacher_tokens(ctx.networks))


# on the clients


def evaluate(ctx: EvaluationContext, s: MMCSettings) -> Mapping[str, np.ndarray]:
    """Sums over a client's test pictures: segmentation by prompts, similarities, and restored pixels.

    ``client_threshold`` holds the sum of IoU with thresholds of the client's own, and the number of objects.
    """
    student, judged = network(ctx.networks, "student", Student), _judge(ctx, s)
    errors, generator = MaskedError(), ctx.generator("corruption")
    for batch in ctx.batches():
        clean = views.fixed_view(s, batch)["view"]
        drawn = {name: ctx.place(value) for name, value in views.corruption(s, len(clean), generator)._asdict().items()}
        with ctx.autocast():
            restored = student.reconstructed(student.backbone(views.corrupted({"views": clean, **drawn})))
        errors.update(restored.float(), clean, drawn["mask"][:, None].expand_as(clean))
    own = judged.compute()
    objects = own.get("objects", 0.0)
    return {**judged.state(), _CLIENT: np.array([own.get("miou", 0.0) * objects, objects]), **errors.state()}


def _judge(ctx: EvaluationContext, s: MMCSettings) -> Judgement:
    """The teacher on a client's pictures.

    The threshold is chosen on the samples that the client holds back (``data.validation``). If there are none, every
    other test picture chooses the threshold, and only the others are scored.
    """
    judged, tokens = Judgement(s), teacher_tokens(ctx.networks)

    def add(batch: Mapping[str, Tensor], halves: Mapping[str, slice]) -> None:
        seen = views.fixed_view(s, batch)
        with ctx.autocast():
            found = tokens(seen["view"])
        for half, part in halves.items():
            judged.update(found[part], {name: values[part] for name, values in seen.items()}, half)

    if "instances" not in ctx.data:
        return judged
    held = ctx.validation
    apart = len(held.get("instances", ())) > 0
    for batch in ctx.iterate(held, ctx.batch_size) if apart else ():
        add(batch, {"validation": slice(None)})
    first = 0
    for batch in ctx.batches():
        odd = {"validation": slice((first + 1) % 2, None, 2), "test": slice(first % 2, None, 2)}
        add(batch, {"test": slice(None)} if apart else odd)
        first += len(batch["image"])
    return judged


def values(sums: Mapping[str, np.ndarray], s: MMCSettings) -> dict[str, float]:
    """What follows from the sums of one client, with its own threshold; or of several, with one threshold for all.

    ``client_miou`` is the mean over all objects where every client has a threshold of its own.
    """
    judged, errors = Judgement(s), MaskedError()
    judged.merge(sums)
    errors.merge(sums)
    measured = judged.compute()
    total, objects = sums[_CLIENT].tolist()
    if objects:
        measured["client_miou"] = total / objects
    return measured | errors.compute()


# on the server


@torch.no_grad()
def remember_start(ctx: ServerContext, s: MMCSettings) -> None:
    """Judge the untrained network and the raw pixels, for comparison with what is learned."""
    if scorable(ctx):
        for name, tokens in (("start", teacher_tokens(ctx.networks)), ("raw", pixel_tokens(s))):
            for metric, value in _judged(ctx, s, tokens).items():
                if metric in _GAINS:
                    ctx.private[f"{_START}{name}_{metric}"] = torch.tensor(value, dtype=torch.float64)


@torch.no_grad()
def segment(ctx: ServerContext, s: MMCSettings) -> dict[str, float]:
    """Zero-shot segmentation with thresholds chosen on the set 'validation' and scored on 'test'; each figure also of
    the untrained network (``start_``) and of raw pixels (``raw_``), and by how much the teacher's is above them
    (``_over_start``, ``_over_raw``).
    """
    measured = _judged(ctx, s, teacher_tokens(ctx.networks))
    for name in sorted(ctx.private):  # a resumed run holds them in another order
        if name.startswith(_START):
            measured[name.removeprefix(_START)] = float(ctx.private[name])
    gains = {
        f"{name}_over_{other}": measured[name] - measured[f"{other}_{name}"]
        for name in _GAINS
        for other in ("raw", "start")
        if f"{other}_{name}" in measured
    }
    return measured | gains


def scorable(ctx: ServerContext) -> bool:
    """Whether the server holds pictures with instances to choose a threshold on, and others to score."""
    return all("instances" in ctx.data.get(half, {}) for half in _HALVES)


def _judged(ctx: ServerContext, s: MMCSettings, tokens: Callable[[Tensor], Tensor]) -> dict[str, float]:
    judged = Judgement(s)
    ctx.networks.eval()
    for half in _HALVES:
        for seen in _seen(ctx, s, half):
            judged.update(tokens(seen["view"]), seen, half)
    measured = judged.compute()
    if "miou" not in measured and not ctx.preflight:
        raise DataError("server data 'validation' and 'test'", "no object to prompt", "objects of a patch or more")
    return measured


@torch.no_grad()
def mechanisms(ctx: ServerContext, s: MMCSettings) -> dict[str, float]:
    """Whether each loss has done on held-out pictures what it asks for, and whether the teacher has collapsed.

    ``delta_h``: cross-entropy of the student's patches with another picture's targets minus that with their own.
    ``contrast_accuracy``: share of pictures whose query finds the key of another view of the same picture among those
    of a batch. ``target_entropy`` and ``marginal_entropy`` are over ln K, ``center_norm`` is over √K.
    """
    ctx.networks.eval()
    teacher, student = network(ctx.networks, "teacher", Teacher), network(ctx.networks, "student", Student)
    centers, generator = network(ctx.networks, "centers", Centers), ctx.generator("held-out views")
    found: dict[str, list[Tensor]] = {"delta_h": [], "contrast_accuracy": []}
    logits = []
    for seen, batch in zip(_seen(ctx, s, "test"), ctx.iterate(ctx.data["test"], ctx.batch_size), strict=True):
        t, made = teacher(seen["view"]), student(seen["view"])
        # some patches of each picture suffice, and all logits of all pictures would not fit into memory
        some = slice(None, None, max(1, t.patches.shape[1] // _PATCHES))
        teaching = centers.teaching(t)[:, some].float()
        logits.append(teaching.flatten(0, 1))
        targets = sharpened(teaching, _center(s, centers, teaching), s.teacher_temperature[1])
        mismatched, matched = (
            prototype_cross_entropy(p, made.patches[:, some], s.student_temperature)
            for p in (targets.roll(1, 0), targets)
        )
        found["delta_h"].append((mismatched - matched).expand(len(targets)))
        first, second = views.training_views(s, dict(batch), generator)["views"].chunk(2)
        queries, keys = student.queries(student(first).contrast), teacher(second).contrast
        nearest = (directions(queries) @ directions(keys).T).argmax(1)
        found["contrast_accuracy"].append(nearest == torch.arange(len(keys), device=keys.device))
    measured = {name: float(torch.cat(parts).double().mean()) for name, parts in found.items()}
    whole = torch.cat(logits)
    figures = target_figures(whole, _center(s, centers, whole), s.teacher_temperature[1])
    return {**measured, **figures._asdict(), "collapse_alarm": float(figures.collapsed)}


def _center(s: MMCSettings, centers: Centers, logits: Tensor) -> Tensor:
    """The center of targets, (K,); where centers are the clients' own, the mean of the logits at hand stands in."""
    return logits.flatten(0, -2).mean(0) if s.teacher_sync == "local" else centers.patches.value


def _seen(ctx: ServerContext, s: MMCSettings, name: str) -> Iterator[dict[str, Tensor]]:
    return (views.fixed_view(s, batch) for batch in ctx.iterate(ctx.data[name], ctx.batch_size))
