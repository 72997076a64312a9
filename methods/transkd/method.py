"""TransKD: a small segmentation transformer learns the feature maps and patch embeddings of a large one.

Liu et al., "TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation", arXiv 2202.13393.
Symbols: E_i, F_i patch embeddings and features of stage i; O_i, Ê_i what the distiller makes of the student's.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1, the server:  load the teacher, or train one on server-held images        server_prepare
    every round, every client, for every batch of images and masks:
        flip and shift images and masks alike                                                batches → _augmented
        E_i, F_i ← student's four stages;  E_i^T, F_i^T ← teacher's                          loss
        O_i ← fuse F_4 … F_i (CSF);  Ê_i ← align E_i (PEA)                                   loss → Distiller
        L = CE(decode(F), mask) + Σ HCL(O_i, F_i^T) + Σ β_i MSE(Ê_i, E_i^T)                  loss
        step at a rate that falls linearly with the round                                    schedule
    server: average student and distiller; the teacher was sent once and never comes back    exchange
    every evaluation: mean IoU of the student alone                                          evaluate
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.blocks.pictures import segmentations
from fedlab.blocks.pretrain import train_on_server
from fedlab.distill.dense import pixel_cross_entropy
from fedlab.distill.mask_views import flip_and_shift
from fedlab.errors import ConfigError
from fedlab.method import (
    Batch,
    BatchSpec,
    EvaluationContext,
    Features,
    FigureContext,
    Group,
    Method,
    Picture,
    Plan,
    ServerContext,
    Step,
    Task,
    network,
)
from fedlab.methods.transkd.distiller import CrossSelectiveFusion, Distiller, EmbeddingAssistant, GLMixer
from fedlab.methods.transkd.losses import embedding_loss, feature_loss
from fedlab.methods.transkd.settings import TransKDSettings, check, check_task
from fedlab.metrics import Segmentation
from fedlab.models.segformer import SegFormer

HELD_OUT, TEACHER_SAMPLES = "test", "teacher"
"""The server's sample sets: that on which it tests both networks, and that on which it trains the teacher."""


class TransKD(Method[TransKDSettings]):
    """Distillation of feature maps (CSF) and patch embeddings (PEA) for segmentation transformers."""

    title = "TransKD"
    paper = "Liu et al. 2022, arXiv 2202.13393"
    modality = "images with masks"
    learns_from = "a large segmentation network's feature maps and embeddings"
    own_model = "SegFormer"

    feature_parts = ("student", "teacher")

    Settings = TransKDSettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        """Build the student first and the distiller last, so that student and teacher are the same in every variant."""
        s = self.settings
        check_task(s, task)
        channels, outputs = task.input_shape[0], task.num_classes + s.void_logit
        networks: dict[str, nn.Module] = {"student": SegFormer(s.student, channels, outputs)}
        if s.distils:
            networks["teacher"] = SegFormer(s.teacher, channels, outputs)
            widths = s.student.widths, s.teacher.widths
            networks["distiller"] = Distiller(
                *widths,
                fusion=CrossSelectiveFusion(*widths, s.csf_width, s.squeeze) if s.csf else None,
                stages=s.stages,
                mixer=GLMixer(widths[0][-1], s.gl_residual) if s.variant == "gl" else None,
                assistant=EmbeddingAssistant(*widths, channels) if s.variant == "ea" else None,
            )
        return networks

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """§6: student and distiller are averaged; the teacher is sent once and never comes back."""
        s = self.settings
        student = Group("student", ("student",), buffers=s.buffers)
        if not s.distils:
            return (student,)
        distiller = Group(
            "distiller", ("distiller",), mode="local" if s.distiller == "local" else "average", buffers=s.buffers
        )
        return student, distiller, Group("teacher", ("teacher",), mode="once")

    def server_prepare(self, ctx: ServerContext) -> None:
        """Load the teacher's checkpoint, then train it; weights from ``init`` are already loaded."""
        s = self.settings
        if not s.distils:
            return
        teacher = network(ctx.networks, "teacher", SegFormer)
        if s.pretrained and not teacher.load_pretrained(s.pretrained, "method.pretrained") and not s.teacher_steps:
            expected, fix = "a whole segmentation network with these classes", "or set method.teacher_steps to train it"
            raise ConfigError("method.pretrained", s.pretrained, expected, fix)
        if not s.teacher_steps:
            return
        if TEACHER_SAMPLES not in ctx.data:
            held = f"this source holds {', '.join(ctx.data) or 'none'}; see methods/transkd/README.md"
            expected = f"a server sample set {TEACHER_SAMPLES!r}"
            raise ConfigError("method.teacher_steps", s.teacher_steps, expected, held)
        train_on_server(
            ctx,
            teacher,
            ctx.data[TEACHER_SAMPLES],
            lambda network, batch: {"teacher_ce": self._cross_entropy(network(batch["image"]), batch["mask"])},
            name="transkd-teacher",
            key=s.model_dump(mode="json", include={"class_weights", "void_logit", "flip", "translate"}),
            steps=s.teacher_steps,
            batch_size=s.teacher_batch,
            augment=self._augmented,
            schedule="linear",
            purposes=("teacher batches", "teacher augmentation"),
        )

    # the client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=self._augmented)

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
        student, images = network(networks, "student", SegFormer), batch["image"]
        seen = student.encode(images)
        terms = {"ce": self._cross_entropy(student.decode(seen.features), batch["mask"])}
        if "teacher" not in networks:
            return terms
        with torch.no_grad():
            taught = network(networks, "teacher", SegFormer).encode(images)
        targets = networks["distiller"](images, seen)
        if targets.features:
            terms["csf"] = feature_loss(targets.features, taught.features)
        if targets.embeddings:
            terms["pea"] = embedding_loss(targets.embeddings, taught.embeddings, self.settings.betas)
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

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """The last stage of an encoder: its positions as tokens, their mean as vectors."""
        stage = network(networks, part, SegFormer).encode(batch["image"]).features[-1]
        return Features(stage.mean(dim=(2, 3)), stage.flatten(2).transpose(1, 2), (stage.shape[2], stage.shape[3]))

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
        found = segmentations(ctx, ctx.samples(HELD_OUT), ("teacher", "student"))
        return {} if found is None else {"segmentation": found}


@torch.no_grad()
def _counts(ctx: EvaluationContext | ServerContext, network: nn.Module, batches: Iterable[Batch]) -> Segmentation:
    metric = Segmentation(ctx.task.num_classes)
    for batch in batches:
        with ctx.autocast():
            logits = network(batch["image"])
        metric.update(logits.argmax(dim=1), batch["mask"])
    return metric


METHOD = TransKD
