"""Hybrid Distillation: a student learns token relations from one frozen teacher and features from another.

"Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners", arXiv 2306.15876, ICLR 2024. No code of
the authors is published, and the paper's body was not available: README.md says what is reconstructed. Symbols: T_c
teacher of features, T_m teacher of relations, S student, P projector, V patches that S sees, R relations of tokens.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1, the server:  load T_m and T_c, or train them on images that it holds       build, server_prepare
    or in rounds of their own:   clients train T_m on masked pixels, then T_c on labels         plan, exchange, loss
    every round of distillation, every client, for every batch of images x:
        run T_c and T_m on all patches of x                                                      loss → lesson
        before blocks 0, L/3, 2L/3:  r_j ← mean cosine of patch j with the other patches of T_c
            keep the ρ · n patches with the lowest r_j: V                                        lesson → drops
        run S, which drops the same patches before the same blocks                               loss → passed
        L_c = SmoothL1(P(S(x))[V], LN0(T_c(x))[V])                                               feature_term
        L_m = mean over blocks J of SmoothL1(R_S[V, V], R_Tm[V, V]),  R = Q Kᵀ / √d_r            relation_term
        AdamW step of S and P on α L_c + β L_m                                                   schedule
    server: average S and P; each client got T_c and T_m once, and they never come back          exchange
    last rounds, where asked for: fine-tune S with labels                                        loss → label_loss
    every evaluation, S alone on all patches: how far it is from both teachers                   evaluation.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.blocks.stages import position
from fedlab.distill.param_groups import decayed
from fedlab.distill.schedules import warmup_cosine
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
from fedlab.methods.hybrid_distill import evaluation, teaching
from fedlab.methods.hybrid_distill.lessons import feature_term, lesson, relation_term
from fedlab.methods.hybrid_distill.networks import Student, make_networks
from fedlab.methods.hybrid_distill.pictures import attention_by_layer, surviving_patches
from fedlab.methods.hybrid_distill.settings import HybridSettings, check
from fedlab.models.vit import ViT

TEACHERS = ("relation_teacher", "feature_teacher")
TRAINED = {
    "relations": ("relation_teacher", "decoder"),
    "features": ("feature_teacher", "classifier"),
    "distill": ("student", "projector"),
    "finetune": ("student", "head"),
}
"""The networks that each stage trains."""


class HybridDistill(Method[HybridSettings]):
    """A vision transformer learns from a masked autoencoder how tokens relate, and from a classifier what they show."""

    title = "Hybrid Distillation"
    paper = "Shi et al. 2023, arXiv 2306.15876"
    headline = (("relation_distance", "server"), ("feature_distance", "server"))
    learns_from = "token relations of one frozen teacher and features of another, on the patches that are not redundant"
    own_model = "ViT with two teachers"
    feature_parts = ("student", *TEACHERS)

    Settings = HybridSettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        return make_networks(self.settings, task)

    # stages, and what travels in them (§6)

    def plan(self, round: int, rounds: int) -> Plan:
        return self.settings.stages.plan(round, rounds)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return self.settings.stages.training(plan)

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """What a stage trains is averaged. In the distillation, teachers that the platform trained are sent once, and
        loaded ones never; everything else rests on the server."""
        roles = dict.fromkeys(role for trained in TRAINED.values() for role in trained)
        return tuple(Group(role, (role,), self._mode(role, str(plan["stage"]))) for role in roles)

    def _mode(self, role: str, stage: str) -> Literal["average", "once", "frozen", "rest"]:
        if role in TRAINED[stage]:
            return "average"
        if stage == "distill" and role in TEACHERS:
            return "once" if getattr(self.settings, role).trained else "frozen"
        return "rest"

    def server_prepare(self, ctx: ServerContext) -> None:
        teaching.train_teachers(ctx, self.settings)

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=lambda batch, generator: teaching.training_views(self.settings, batch, generator))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        """Weight decay on matrices, tokens and positions, not on biases and scales (§3.5)."""
        roles = (role for role in TRAINED[str(plan["stage"])] if role in networks)
        return [group for role in roles for group in decayed(networks[role])]

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """A linear warm-up and a cosine to 0, in each stage by itself."""
        s, (at, total) = self.settings, position(step)
        return {"lr": warmup_cosine(at, total, group["lr"], s.final_lr, total * s.warmup_epochs // s.epochs)}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = α L_c + β L_m (§3.3); a term of weight 0 is not computed."""
        s, stage, x = self.settings, step.plan["stage"], batch["image"]
        if stage == "relations":
            return teaching.masked_loss(s, networks, batch)
        if stage != "distill":
            return teaching.label_loss(s, networks, batch, TRAINED[str(stage)][0])
        shown = lesson(s, networks, x, batch["order"], features=s.feature_weight > 0, relations=s.beta > 0)
        student = network(networks, "student", Student)
        made = student.passed(x, shown.drops, [ours for ours, _ in s.compared])
        step.log("token_share", made.processed / (s.student.depth * (1 + batch["order"].shape[1])))
        terms: dict[str, Tensor] = {}
        if s.feature_weight:
            terms["l_c"] = s.feature_weight * feature_term(s, networks, shown, made)
        if s.beta:
            terms["l_m"] = s.beta * relation_term(s, networks, shown, made)
        return terms

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Logits (n, K) of the fine-tuned student; without fine-tuning its features, (n, D)."""
        if "head" in networks:
            return teaching.logits(self.settings, networks, batch["image"], "student")
        return teaching.pooled(self.settings, networks["student"](batch["image"]))

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Tokens after the last normalization, of all patches (§3.6)."""
        vit = network(networks, part, ViT)
        tokens = vit(batch["image"])
        return Features(teaching.pooled(self.settings, tokens), tokens[:, 1:], vit.grid)

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return evaluation.evaluate(ctx, self.settings, str(ctx.plan["stage"]))

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return evaluation.values(sums, self.settings, task)

    @torch.no_grad()
    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        return evaluation.server_evaluate(ctx, self.settings)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return {**attention_by_layer(ctx, self.settings), **surviving_patches(ctx, self.settings)}


METHOD = HybridDistill
