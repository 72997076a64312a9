"""GPFM: a pathology encoder learns from itself and from frozen experts, which differ from client to client.

Ma, Guo, Zhou et al., "Towards A Generalizable Pathology Foundation Model via Unified Knowledge Distillation",
arXiv 2407.18449. Symbols: f backbone, h prototype head, g_e head of expert e, E_e the expert, p and s targets and
logits over prototypes, c centers, τ temperatures, m momentum of the teacher, a_e and b_e weights of an expert.

The algorithm, in the order in which it runs, and the hook that does each line::

    every process, once: load or train the experts that its clients hold                   assets → builders
    every round, every client, for every batch of tiles:
        G ← two global crops of each tile, local crops; masks of half of G                 batch_spec → training_crops
        p ← softmax((h_t(f_t(G)) − c) / τ_t), of class tokens and of masked patches        loss
        s ← h(f(masked G, local crops)) of the same                                        loss
        L = H(p, s) across crops + H(p, s) of masked patches − 0.1 log distances           loss
        for every expert e that the client holds:
            L += a_e (1 − cos(g_e(f(masked G)), E_e(G))) + b_e L_patch                     loss → _imitation
        AdamW step; c ← average with the batch's; f_t, h_t ← m · own + (1 − m) · f, h      schedule, after_step
    server: average f, h, c and the teacher over all, and each g_e over the holders of e   exchange
    every evaluation: experts imitated on held-out tiles, tasks on the teacher's features  evaluate, server_evaluate
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.data.batching import whole_batches
from fedlab.distill.multiview import cross_view_loss
from fedlab.distill.prototypes import sharpened
from fedlab.distill.schedules import cosine, linear, warmup_cosine
from fedlab.method import (
    Asset,
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
from fedlab.methods.gpfm import evaluation, experts, losses
from fedlab.methods.gpfm.networks import Centers, Encoder, distillation_heads, imitated, parameter_groups
from fedlab.methods.gpfm.pictures import crops_and_masks
from fedlab.methods.gpfm.settings import EXPERTS, GPFMSettings, check, ema, used
from fedlab.methods.gpfm.views import check_tiles, training_crops


class GPFM(Method[GPFMSettings]):
    """Self-distillation with prototypes, unified with distillation from several frozen experts."""

    title, paper = "GPFM", "Ma et al. 2024, arXiv 2407.18449"
    headline = (("accuracy_label", "server"), ("cosine", "mean"))
    own_model = "ViT with a prototype head and a head for each expert"
    learns_from = "a teacher that is a moving average of the student, and frozen experts that some clients hold"
    Settings, feature_parts = GPFMSettings, ("teacher", "student")

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def assets(self, task: Task) -> Mapping[str, Asset]:
        return experts.builders(self.settings, task)

    def build(self, task: Task) -> dict[str, nn.Module]:
        s, channels = self.settings, check_tiles(self.settings, task)
        student, teacher = Encoder(s, channels, s.drop_path), Encoder(s, channels).requires_grad_(False)
        teacher.load_state_dict(student.state_dict())
        return {"student": student, "teacher": teacher, "centers": Centers(s), EXPERTS: distillation_heads(s)}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Heads of experts are averaged over the holders; the EMA has no copy of them (§6)."""
        heads = (Group(f"distill_head/{name}", (f"{EXPERTS}.{name}",), asset=name) for name in used(self.settings))
        unused = Group("unused_heads", (EXPERTS,), "rest")
        student = (Group("student", ("student.backbone",)), Group("proto_head", ("student.head",)))
        return (*student, *ema(self.settings).groups(), *heads, unused)

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(whole_batches, lambda batch, generator: training_crops(self.settings, batch, generator))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        return parameter_groups(self.settings, network(networks, "student", Encoder), networks[EXPERTS])

    def set_modes(self, networks: nn.ModuleDict, plan: Plan) -> None:
        ema(self.settings).set_modes(networks)

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """§3.4, over the steps of all rounds; the last layers rest at first."""
        s, at, total = self.settings, step.global_step, step.total_steps
        lr = warmup_cosine(at, total, group["lr"], s.final_lr, total * s.warmup_epochs // s.epochs)
        if group["rests"] and at < total * s.freeze_epochs // s.epochs:
            lr = 0.0
        return {"lr": lr, "weight_decay": cosine(at, total, *s.weight_decay) if group["decays"] else 0.0}

    def fit(self, ctx: FitContext) -> None:
        ema(self.settings).begin(ctx)
        ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_dino + L_ibot + 0.1 L_koleo + Σ_e (a_e L_cls + b_e L_patch) (§3.3); a term of weight 0 is left out."""
        s, crops, mask = self.settings, batch["crops"], batch["mask"]
        student, teacher = (network(networks, role, Encoder) for role in ("student", "teacher"))
        centers = network(networks, "centers", Centers)
        with torch.no_grad():
            taught = teacher.backbone(crops)
            t, t_patches = teacher.logits(taught[:, 0]), teacher.logits(taught[:, 1:][mask])
        step.scratch["taught"] = t, t_patches
        tokens = student.backbone(crops, masked=mask)
        epoch = step.global_step * s.epochs // step.total_steps
        τ_t, τ_s = linear(epoch, s.temperature_epochs, *s.teacher_temperature), s.student_temperature
        terms: dict[str, Tensor] = {}
        if s.dino_weight:
            views = [*student.logits(tokens[:, 0]).chunk(2)]
            if s.views.local:
                views += student.logits(student.backbone(batch["local"])[:, 0]).chunk(s.views.local)
            p = sharpened(t, centers.classes.value, τ_t)
            terms["l_dino"] = s.dino_weight * cross_view_loss(p.chunk(2), views, τ_s)
        if s.ibot_weight:
            p, made = sharpened(t_patches, centers.patches.value, τ_t), student.logits(tokens[:, 1:][mask])
            terms["l_ibot"] = s.ibot_weight * losses.masked_patch_loss(p, made, mask, τ_s)
        if s.koleo_weight:
            terms["l_koleo"] = s.koleo_weight * losses.spread_loss(tokens[:, 0])
        return terms | self._imitation(networks[EXPERTS], tokens, student.backbone.grid, crops, step)

    def _imitation(
        self, heads: nn.Module, tokens: Tensor, grid: tuple[int, int], crops: Tensor, step: Step
    ) -> dict[str, Tensor]:
        """The terms of the experts that this client holds: they see unmasked crops, the student masked ones."""
        terms: dict[str, Tensor] = {}
        for name in step.holds:
            expert, kind = self.settings.experts[name], self.settings.cls_loss
            with torch.no_grad():
                wanted = step.asset(name)(crops)
            made = imitated(heads, name, tokens)
            terms[f"cls_{name}"] = expert.cls_weight * losses.cls_loss(made[:, 0], wanted.classes, kind)
            if expert.patch_weight:
                seen = losses.resized(wanted.patches, wanted.grid, grid)
                terms[f"patch_{name}"] = expert.patch_weight * losses.patch_loss(made[:, 1:], seen)
        return terms

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        network(networks, "centers", Centers).update(*step.scratch.pop("taught"))
        ema(self.settings).after_step(networks, step)

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        return ema(self.settings).result(ctx)

    def server_update(self, ctx: ServerContext) -> None:
        ema(self.settings).server_update(ctx)

    # evaluation

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Class and patch tokens of whole tiles, by default those of the EMA teacher, which is what is used (§3.5)."""
        return Features(*evaluation.features(self.settings, networks, batch["image"], part))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, Any]:
        return evaluation.client_sums(ctx, self.settings)

    def evaluation_values(self, sums: Mapping[str, Any], task: Task) -> dict[str, float]:
        return evaluation.values(sums)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        return evaluation.server_values(ctx, self.settings)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return crops_and_masks(ctx, self.settings)


METHOD = GPFM
