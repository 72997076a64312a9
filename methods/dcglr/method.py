"""DCGLR: a student that sees parts of shapes agrees with a teacher that sees whole shapes, and tells shapes apart.

Fu, Gao, Zhang, Li, Qiao, Wang, "Distillation with Contrast is All You Need for Self-Supervised Point Cloud
Representation Learning", arXiv 2202.04241. Symbols: s, t logits of student and teacher, p targets, z features before
the prototypes, c center, τ temperatures, m momentum of the teacher.

The algorithm, in the order in which it runs, and the hook that does each line::

    every round, every client, for every batch of shapes:
        two global views, local views, coarse views of each shape                      batch_spec → views.views
        t, z_t ← teacher(two global views); p ← softmax((t − c) / τ_t)                 loss
        s, z_s ← student(all views)                                                    loss
        L = L_KD(p, s of every other view) + λ L_con(z_s, z_t of the other view)       loss
        AdamW step; center c ← average with the batch's t                              schedule, after_step
        teacher ← m · teacher + (1 − m) · student, parameters only                     after_step → settings.ema
    server: average student and center; average, move, reset or leave the teacher      exchange, server_update
    every evaluation: do parts of held-out shapes tell the target of the whole?        evaluate, server_evaluate
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.data.batching import whole_batches
from fedlab.distill.multiview import cross_view_loss
from fedlab.distill.param_groups import decayed
from fedlab.distill.prototypes import Center, entropy, sharpened
from fedlab.distill.schedules import cosine, warmup_cosine
from fedlab.method import (
    Batch,
    BatchSpec,
    EvaluationContext,
    Features,
    FigureContext,
    FitContext,
    Group,
    Method,
    Picture,
    Plan,
    ServerContext,
    Step,
    Task,
    network,
)
from fedlab.methods.dcglr import evaluation
from fedlab.methods.dcglr.losses import contrast
from fedlab.methods.dcglr.networks import Encoder
from fedlab.methods.dcglr.pictures import shapes_and_views
from fedlab.methods.dcglr.settings import DCGLRSettings, check, check_shapes, ema
from fedlab.methods.dcglr.views import KINDS, views


class DCGLR(Method[DCGLRSettings]):
    """Self-supervised features of point clouds, by distillation from whole to part and by contrast."""

    title, paper = "DCGLR", "Fu et al. 2022, arXiv 2202.04241"
    headline = (("svm_accuracy", "server"),)
    modality, own_model = "point clouds", "point encoder with prototypes"
    learns_from = "parts of shapes that are to agree with the whole, and other shapes that are to differ"
    Settings, feature_parts = DCGLRSettings, ("teacher", "student")

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        s = self.settings
        check_shapes(s, task.columns)
        student, teacher = Encoder(s), Encoder(s, s.teacher_sync != "server_ema").requires_grad_(False)
        teacher.load_state_dict(student.state_dict())
        return {"student": student, "teacher": teacher, "center": Center(s.prototypes, s.center_momentum)}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        return (Group("student", ("student",)), *ema(self.settings).groups())

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(whole_batches, lambda batch, generator: views(self.settings, batch, generator))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        return decayed(networks["student"])

    def set_modes(self, networks: nn.ModuleDict, plan: Plan) -> None:
        """The teacher's BatchNorm uses the batch and keeps running statistics of its own (§4)."""
        ema(self.settings).set_modes(networks)

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """§3.4, over the steps of all rounds."""
        s, at, total = self.settings, step.global_step, step.total_steps
        lr = warmup_cosine(at, total, group["lr"], s.final_lr, total * s.warmup_epochs // s.epochs)
        return {"lr": lr, "weight_decay": cosine(at, total, *s.weight_decay) if group["decays"] else 0.0}

    def fit(self, ctx: FitContext) -> None:
        ema(self.settings).begin(ctx)
        if "label" in ctx.data:  # of few classes, most negatives are of the anchor's own class
            ctx.log("class_entropy", float(entropy(torch.bincount(ctx.data["label"]) / len(ctx.data["label"]))))
        ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_KD + λ L_con (§3.3)."""
        s, kinds, center = self.settings, batch[KINDS], network(networks, "center", Center)
        student, teacher = (network(networks, role, Encoder) for role in ("student", "teacher"))
        with torch.no_grad():
            z_t, t = teacher.of_views(kinds[:1])
        frozen = step.global_step * s.epochs // step.total_steps < s.freeze_prototypes_epochs
        z_s, logits = student.of_views(kinds, frozen=frozen)
        p = [sharpened(view, center.value, s.teacher_temperature) for view in t]
        step.scratch["mean"] = torch.cat(t).float().mean(0)
        step.log("target_entropy", float(entropy(torch.cat(p)).mean()) / math.log(s.prototypes))
        terms: dict[str, Tensor] = {}
        if s.distillation_weight:
            terms["l_kd"] = s.distillation_weight * cross_view_loss(p, logits, s.student_temperature)
        if s.lambda_con:
            terms["l_con"] = s.lambda_con * contrast(s, z_s, z_t, p, logits)
        return terms

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        network(networks, "center", Center).update(step.scratch.pop("mean"))
        ema(self.settings).after_step(networks, step)

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        return ema(self.settings).result(ctx)

    def server_update(self, ctx: ServerContext) -> None:
        ema(self.settings).server_update(ctx)
        evaluation.reestimate(ctx, self.settings)

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """L2-normalized features of a backbone, by default the teacher's, of whole shapes (§3.5)."""
        return Features(evaluation.features(networks, batch["points"], part))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, Any]:
        return evaluation.evaluate(ctx, self.settings)

    def evaluation_values(self, sums: Mapping[str, Any], task: Task) -> dict[str, float]:
        return evaluation.values(sums)

    def server_prepare(self, ctx: ServerContext) -> None:
        evaluation.remember_start(ctx, self.settings)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        return evaluation.server_evaluate(ctx, self.settings)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return shapes_and_views(ctx, self.settings)


METHOD = DCGLR
