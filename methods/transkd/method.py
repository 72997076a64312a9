"""TransKD: a small segmentation transformer learns the feature maps and patch embeddings of a large one.

Liu et al., "TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation", arXiv 2202.13393.
Symbols: E_i, F_i patch embeddings and features of stage i; O_i, Ê_i what the distiller makes of the student's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.context import EvaluationContext, FigureContext, ServerContext
from fedlab.distill.dense import hierarchical_context_loss, pixel_cross_entropy
from fedlab.distill.precision import full_precision
from fedlab.errors import ConfigError
from fedlab.method import Batch, Batches, Group, Method, Plan, Step, Task
from fedlab.methods.transkd.augment import flip_and_shift
from fedlab.methods.transkd.distiller import CrossSelectiveFusion, Distiller, EmbeddingAssistant, GLMixer
from fedlab.methods.transkd.pictures import overlays
from fedlab.methods.transkd.segformer import SegFormer
from fedlab.methods.transkd.settings import TransKDSettings, check
from fedlab.metrics import Segmentation
from fedlab.pictures import Picture

STRIDE = 4
"""Image pixels per position of the logits and of the masks."""
TEACHING, HELD_OUT = "teacher", "test"
"""Sample sets of the server: what its teacher is trained on, and what it tests both networks on."""


class TransKD(Method):
    """Distillation of feature maps (CSF) and patch embeddings (PEA) for segmentation transformers."""

    title = "TransKD"
    paper = "Liu et al. 2022, arXiv 2202.13393"

    class Settings(TransKDSettings):
        """Settings; defaults are the paper's."""

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        """The student first, so that it starts alike with and without distillation; the teacher is filled later."""
        s = self.settings
        self._check_task(task)
        channels, outputs = task.input_shape[0], task.num_classes + s.void_logit
        networks: dict[str, nn.Module] = {"student": SegFormer(s.student, channels, outputs)}
        if s.distils:
            widths = s.student.widths, s.teacher.widths
            networks["distiller"] = Distiller(
                *widths,
                fusion=CrossSelectiveFusion(*widths, s.csf_width, s.squeeze) if s.csf else None,
                stages=s.stages,
                mixer=GLMixer(widths[0][-1], s.gl_residual) if s.variant == "gl" else None,
                assistant=EmbeddingAssistant(*widths, channels) if s.variant == "ea" else None,
            )
            networks["teacher"] = SegFormer(s.teacher, channels, outputs)
        return networks

    def _check_task(self, task: Task) -> None:
        weights: tuple[float, ...] | None = self.settings.class_weights
        if "mask" not in task.columns:
            raise ConfigError("data.source", sorted(task.columns), "images with masks", "see the sources scenes, masks")
        height, width = task.input_shape[1:]
        (_, mask) = task.columns["mask"]
        if height % STRIDE or width % STRIDE or mask != (height // STRIDE, width // STRIDE):
            expected = f"sides that {STRIDE} divides, and masks of 1/{STRIDE} of them"
            fix = f"set data.source.size to multiples of {STRIDE}, and data.source.stride: {STRIDE}"
            raise ConfigError("data.source", f"images {height}×{width}, masks {mask}", expected, fix)
        if self.settings.csf and max(height, width) <= 32:
            raise ConfigError(
                "data.source", f"images {height}×{width}", "more than 32 pixels: CSF needs a map in stage 4"
            )
        if weights is not None and len(weights) != task.num_classes:
            raise ConfigError(
                "method.class_weights", len(weights), f"{task.num_classes} numbers", ", ".join(task.class_names)
            )

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """§6: student and distiller are averaged; the teacher is sent once and never comes back."""
        s = self.settings
        student = Group("student", ("student",), buffers=s.buffers)
        if not s.distils:
            return (student,)
        mode = "average" if s.distiller == "shared" else "local"
        distiller = Group("distiller", ("distiller",), mode=mode, buffers=s.buffers)
        return student, distiller, Group("teacher", ("teacher",), mode="once")

    # the teacher

    def server_prepare(self, ctx: ServerContext) -> None:
        """Load and train the teacher; a start from ``init`` is in the networks already."""
        s = self.settings
        if not s.distils:
            return
        teacher = cast(SegFormer, ctx.networks["teacher"])
        whole = teacher.load_pretrained(s.pretrained, "method.pretrained") if s.pretrained else True
        if s.teacher_steps:
            if TEACHING not in ctx.data:
                raise ConfigError(
                    "method.teacher_steps", s.teacher_steps, f"a server sample set {TEACHING!r}",
                    f"this source holds {', '.join(ctx.data) or 'none'}; see methods/transkd/README.md",
                )  # fmt: skip
            learnt = ctx.cached("transkd-teacher", self._teacher_key(ctx, teacher), partial(self._teach, ctx, teacher))
            teacher.load_state_dict(dict(learnt))
        elif not whole:
            raise ConfigError(
                "method.pretrained", s.pretrained, "a whole segmentation network with these classes",
                "its encoder alone is a start: set method.teacher_steps",
            )  # fmt: skip

    def _teacher_key(self, ctx: ServerContext, teacher: SegFormer) -> dict[str, Any]:
        names = {"teacher", "class_weights", "flip", "translate", "teacher_steps", "teacher_batch", "void_logit"}
        start = torch.stack([v.double().square().sum() for v in teacher.state_dict().values()]).sum()
        training = ctx.training.model_dump(mode="json", include={"lr", "optimiser", "weight_decay", "betas", "eps"})
        return {**self.settings.model_dump(mode="json", include=names), **training, "start": float(start)}

    def _teach(self, ctx: ServerContext, teacher: SegFormer) -> dict[str, Tensor]:
        """Cross-entropy under the run's optimiser, its rate falling linearly to 0."""
        s = self.settings
        teacher.train().requires_grad_()
        optimiser = ctx.optimiser(teacher.parameters())
        per_epoch = -(-len(ctx.data[TEACHING]["image"]) // s.teacher_batch)
        batches = ctx.iterate(
            ctx.data[TEACHING], s.teacher_batch, -(-s.teacher_steps // per_epoch), shuffle="teacher batches"
        )
        generator = ctx.generator("teacher augmentation")
        for step, batch in zip(ctx.steps(s.teacher_steps), batches, strict=False):
            optimiser.set(lambda group, left=1 - step / s.teacher_steps: {"lr": group["lr"] * left})
            batch = self._augmented(batch, generator)
            with ctx.autocast():
                logits = teacher(batch["image"])
            ctx.step({"teacher_ce": self._cross_entropy(logits, batch["mask"])}, optimiser)
        teacher.eval().requires_grad_(False)
        return teacher.state_dict()

    # the client's round

    def batches(self, plan: Plan) -> Batches:
        return Batches(collate=self._augmented)

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        s = self.settings
        images, masks = flip_and_shift(batch["image"], batch["mask"], s.flip, s.translate, generator)
        return {**batch, "image": images, "mask": masks}

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """§3.6: linear in the round, over a horizon that may lie beyond the run's end."""
        horizon = self.settings.horizon
        return {"lr": group["lr"] * max(0.0, 1 - (step.round - 1) / horizon)} if horizon else {}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = CE + Σ HCL(O_i, F_i^T) + Σ β_i MSE(Ê_i, E_i^T)."""
        student, images = cast(SegFormer, networks["student"]), batch["image"]
        seen = student.encode(images)
        terms = {"ce": self._cross_entropy(student.decode(seen.features), batch["mask"])}
        if "teacher" not in networks:
            return terms
        with torch.no_grad():
            taught = cast(SegFormer, networks["teacher"]).encode(images)
        targets = networks["distiller"](images, seen)
        if targets.features:
            pairs = zip(targets.features, taught.features, strict=True)
            terms["csf"] = torch.stack([hierarchical_context_loss(o, f) for o, f in pairs]).sum()
        if targets.embeddings:
            terms["pea"] = embedding_alignment(targets.embeddings, taught.embeddings, self.settings.betas)
        return terms

    def _cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        s, weights = self.settings, None
        if s.class_weights is not None:
            weights = logits.new_tensor((*s.class_weights, *(0.0,) * s.void_logit), dtype=torch.float32)
        return pixel_cross_entropy(logits, masks, weights)

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Logits (n, K, H/4, W/4) of the student alone."""
        logits: Tensor = networks["student"](batch["image"])
        return logits

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return _counts(ctx, ctx.networks["student"], ctx.batches()).state()

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        metric = Segmentation(task.num_classes)
        metric.merge(sums)
        return metric.compute()

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        """Student and teacher on the server's own test images, where it holds some."""
        values: dict[str, float] = {}
        for role in ("student", "teacher") if HELD_OUT in ctx.data else ():
            if role in ctx.networks:
                metric = _counts(ctx, ctx.networks[role].eval(), ctx.iterate(ctx.data[HELD_OUT], 64))
                prefix = "" if role == "student" else f"{role}_"
                values |= {f"{prefix}{name}": value for name, value in metric.compute().items()}
        return values

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return overlays(ctx, ctx.data.get(HELD_OUT) or ctx.client_test(0))


def embedding_alignment(
    embeddings: Mapping[int, Tensor], teacher: tuple[Tensor, ...], weights: Mapping[int, float]
) -> Tensor:
    """L_PEA = Σ β_i MSE(Ê_i, E_i^T).

    Args:
        embeddings: Ê_i (B, N_i, C_i^T) by stage from 0.
        teacher: E_i^T of all stages.
        weights: β by stage from 0.
    """
    terms = []
    for stage, aligned in embeddings.items():
        with full_precision(aligned, teacher[stage]) as (student, target):
            terms.append(weights[stage] * F.mse_loss(student, target))
    return torch.stack(terms).sum()


@torch.no_grad()
def _counts(ctx: EvaluationContext | ServerContext, network: nn.Module, batches: Iterable[Batch]) -> Segmentation:
    metric = Segmentation(ctx.task.num_classes)
    for batch in batches:
        with ctx.autocast():
            logits = network(batch["image"])
        metric.update(logits.argmax(dim=1), batch["mask"])
    return metric


METHOD = TransKD
