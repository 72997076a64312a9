"""MMC: a student restores masked pictures and learns from its teacher, on patches and across views of whole pictures.

Wu, Mo, Awais, Atito, Feng, Kittler, "Masked Momentum Contrastive Learning for Zero-shot Semantic Understanding",
arXiv 2308.11448. The paper's body and code are not published with its equations; losses and sizes are those of the
group's SiT and MC-SSL (README). Symbols: s, t logits of student and teacher, p targets, c centers, q, k features of the
contrast, τ temperatures, m momentum of the teacher.

The algorithm, in the order in which it runs, and the hook that does each line::

    every round, every client, for every batch of pictures:
        x⁰, x¹ ← two views of each picture; corrupt blocks of both (GMML)                batch_spec → training_views
        t, k ← teacher(x); p ← softmax((t − c) / τ_t) of every patch                     loss
        s, q, x̂ ← student(corrupted x)                                                   loss
        L_mim = |x̂ − x| on corrupted pixels                                              loss → reconstruction_loss
        L_dis = H(p, s) of the same patch of the same view                               loss → patch_loss
        L_con = 2τ [CE(q⁰ k¹ᵀ / τ) + CE(q¹ k⁰ᵀ / τ)]                                     loss → contrast_loss
        AdamW step on w_m L_mim + w_d L_dis + w_c L_con                                  schedule
        c ← average with the batch's t; teacher ← m · teacher + (1 − m) · student        after_step
    server: average student and centers; average, move, reset or leave the teacher       exchange, server_update
    every evaluation, without training: similarity of all patches to a prompted one > t  ZeroShot (evaluation.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.blocks.teacher import EmaTeacher
from fedlab.data.batching import whole_batches
from fedlab.distill.gmml import reconstruction_loss
from fedlab.distill.multiview import cross_view_loss, patch_loss
from fedlab.distill.param_groups import decayed
from fedlab.distill.prototypes import sharpened
from fedlab.distill.schedules import cosine, linear, warmup_cosine
from fedlab.method import (
    Batch,
    BatchSpec,
    FitContext,
    Group,
    Plan,
    ServerContext,
    Step,
    Task,
    network,
)
from fedlab.methods.mmc import views
from fedlab.methods.mmc.evaluation import ZeroShot
from fedlab.methods.mmc.losses import contrast_loss
from fedlab.methods.mmc.networks import Centers, Student, Teacher
from fedlab.methods.mmc.settings import MMCSettings, check


class MMC(ZeroShot):
    """Masked momentum contrastive learning, judged by segmentation from a prompted patch without training."""

    title = "MMC"
    paper = "Wu et al. 2023, arXiv 2308.11448"
    headline = (("miou", "server"), ("auroc", "server"))
    learns_from = "masked pictures that they restore, and a teacher that is a moving average of the student"
    own_model = "ViT with reconstruction, patch and contrast heads"

    Settings = MMCSettings

    @property
    def _teacher(self) -> EmaTeacher:
        s = self.settings
        return EmaTeacher(s.teacher_sync, lambda step, total: cosine(step, total, s.momentum, 1.0), beside=("centers",))

    def check(self, config: Any) -> list[str]:
        return [*check(self.settings, config), *self._teacher.warnings(config)]

    def build(self, task: Task) -> dict[str, nn.Module]:
        s, channels = self.settings, views.check_pictures(self.settings, task)
        student, teacher = Student(s, channels), Teacher(s, channels)
        teacher.load_state_dict({name: student.state_dict()[name] for name in teacher.state_dict()})
        return {"student": student, "teacher": teacher.requires_grad_(False), "centers": Centers(s)}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Student and centers are averaged; `teacher_sync` says what becomes of the teacher (§6)."""
        return (Group("student", ("student",)), *self._teacher.groups())

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        s = self.settings
        return BatchSpec(whole_batches, lambda batch, generator: views.training_views(s, batch, generator))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        return decayed(networks["student"])

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """§3.4, over the steps of all rounds."""
        s, at, total = self.settings, step.global_step, step.total_steps
        lr = warmup_cosine(at, total, group["lr"], s.final_lr, total * s.warmup_epochs // s.epochs)
        return {"lr": lr, "weight_decay": cosine(at, total, *s.weight_decay) if group["decays"] else 0.0}

    def set_modes(self, networks: nn.ModuleDict, plan: Plan) -> None:
        """The teacher's heads normalize over the batch too, also where the server alone may change the teacher."""
        self._teacher.set_modes(networks)
        network(networks, "teacher", Teacher).track_statistics(self.settings.teacher_sync != "server_ema")

    def fit(self, ctx: FitContext) -> None:
        self._teacher.begin(ctx)
        ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = w_m L_mim + w_d L_dis + w_c L_con (§3.3); a term of weight 0 is not computed."""
        s, clean = self.settings, batch["views"]
        student, centers = network(networks, "student", Student), network(networks, "centers", Centers)
        with torch.no_grad():
            t = networks["teacher"](clean)
        made = student(views.corrupted(batch))
        step.scratch["encoded"] = t
        terms: dict[str, Tensor] = {}
        if s.reconstruction_weight:
            restored = student.reconstructed(made.tokens)
            terms["l_mim"] = s.reconstruction_weight * reconstruction_loss(
                restored, clean, batch["mask"], s.reconstruction
            )
        if s.distillation_weight:
            epoch = step.global_step * s.epochs // step.total_steps
            τ_t, τ_s = linear(epoch, s.temperature_epochs, *s.teacher_temperature), s.student_temperature
            l_dis = patch_loss(sharpened(centers.teaching(t), centers.patches.value, τ_t), made.patches, τ_s)
            if centers.classes is not None:
                p = sharpened(t.classes, centers.classes.value, τ_t)
                l_dis = l_dis + cross_view_loss(p.chunk(2), made.classes.chunk(2), τ_s)
            terms["l_dis"] = s.distillation_weight * l_dis
        if s.contrast_weight:
            queries = [*student.queries(made.contrast).chunk(2)]
            if s.views.local:
                queries += student.small_queries(batch["local"]).chunk(s.views.local)
            terms["l_con"] = s.contrast_weight * contrast_loss(queries, t.contrast.chunk(2), s.contrast_temperature)
        return terms

    @torch.no_grad()
    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        network(networks, "centers", Centers).update(step.scratch.pop("encoded"))
        self._teacher.after_step(networks, step)

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        return self._teacher.result(ctx)

    def server_update(self, ctx: ServerContext) -> None:
        self._teacher.server_update(ctx)


METHOD = MMC
