"""FSFM: faces of which one region is wholly hidden are restored, and represented as the whole face is by its average.

Wang et al., "FSFM: A Generalizable Face Security Foundation Model via Self-Supervised Facial Representation Learning",
arXiv 2412.12032. Symbols: x a face, M the hidden patches, M_fr those of the covered region, e the error of a patch, z_o
and z_t what is compared of the masked and of the whole face, m the momentum.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1: mean and deviation of all clients' real faces                  prepare, server_prepare
    rounds of stage pretrain, every client, for every batch of real faces:
        cover a random region, hide the other regions in proportion: M, M_fr       batch_spec → draw_masks
        x̂, z_o ← online network(visible patches of x)                              loss
        z_t ← target(x), the whole face                                            loss
        L_m = Σ e M / Σ M;  L_fr = Σ e M_fr / Σ M_fr;  L_sim = −½ cos(z_o, z_t)    loss → losses.py
        AdamW step on L_m + 0.007 L_fr + 0.1 L_sim                                 schedule
        target ← m · target + (1 − m) · online network                             after_step
    server: average the online network and the target                              exchange
    rounds of stage finetune: encoder, new normalization and head learn labels     finetuning.py
    the round of stage choose: the best model so far and its threshold, by the
        validation samples of the clients that train                               fit → validated; choose
    every evaluation: restored regions; later AUC, EER, HTER of whole videos       evaluation.py
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.blocks.stages import position
from fedlab.blocks.teacher import EmaTeacher
from fedlab.data.batching import balanced_batches, whole_batches
from fedlab.distill.param_groups import decayed
from fedlab.distill.schedules import cosine, warmup_cosine
from fedlab.method import Batch, BatchSpec, FitContext, Group, Plan, ServerContext, Step, Task, network
from fedlab.methods.fsfm import finetuning
from fedlab.methods.fsfm.evaluation import Judged, check_videos, labeled, pretraining, real
from fedlab.methods.fsfm.losses import masked_mean, patch_errors, patch_targets, similarity_loss
from fedlab.methods.fsfm.networks import Classifier, Normalizer, OperatingPoint, Student, Target, image_sums
from fedlab.methods.fsfm.settings import CHOOSE, PRETRAIN, FSFMSettings, check, check_columns, check_faces
from fedlab.methods.fsfm.views import masked_faces

_COMPARED = ("rep_decoder", "projector", "predictor")


class FSFM(Judged):
    """Face security foundation model: masked faces, regions and views, then real against fake."""

    title = "FSFM"
    paper = "Wang et al. 2024, arXiv 2412.12032"
    modality = "faces"
    learns_from = "masked faces that they restore, and the whole face as a moving average of the network sees it"
    own_model = "ViT with pixel and representation decoders"
    Settings = FSFMSettings

    def check(self, config: Any) -> list[str]:
        s, rounds = self.settings, config.federation.rounds - self.settings.tail
        return [*check(s, config), *(self._teacher.warnings(config, rounds) if s.similarity_weight else [])]

    def build(self, task: Task) -> dict[str, nn.Module]:
        s = self.settings
        channels, size = check_faces(s, task)
        student, target = Student(s, size, channels), Target(s, size, channels)
        target.load_state_dict({name: student.state_dict()[name] for name in target.state_dict()})
        normalizer = Normalizer(s.mean, s.std, channels)
        made = {"student": student, "target": target.requires_grad_(False), "normalizer": normalizer}
        if not s.finetune.rounds:
            return made
        return {**made, "classifier": Classifier(s, size, channels, 2), "operating_point": OperatingPoint()}

    # stages, and what travels in them (§6)

    def plan(self, round: int, rounds: int) -> Plan:
        return self.settings.stages.plan(round, rounds)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return self.settings.stages.training(plan)

    @property
    def _teacher(self) -> EmaTeacher:
        s = self.settings
        return EmaTeacher(s.teacher_sync, lambda step, total: cosine(step, total, s.momentum, 1.0), teacher="target")

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """What a stage trains is averaged, and all else rests; without L_sim nobody needs what it compares."""
        s, first = self.settings, plan["stage"] == PRETRAIN
        compares = first and s.similarity_weight > 0
        parts = {"encoder": first, "pixel_decoder": first, "mask_token": first, **dict.fromkeys(_COMPARED, compares)}
        groups = (
            *(Group(name, (f"student.{name}",), "average" if on else "rest") for name, on in parts.items()),
            *self._teacher.groups(resting=not compares),
            Group("statistics", ("normalizer",), "once"),
        )
        return (*groups, *finetuning.groups(s, plan)) if s.finetune.rounds else groups

    # before round 1

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        if self.settings.statistics == "fixed":
            return {}
        return {"sums": image_sums((batch["image"] for batch in ctx.iterate(real(ctx.data))), ctx.task.input_shape[0])}

    def server_prepare(self, ctx: ServerContext) -> None:
        check_columns(self.settings, ctx.task.columns, ctx.plan["stage"] == PRETRAIN)
        if self.settings.statistics == "global":
            sums = torch.stack([ctx.results[client]["sums"] for client in sorted(ctx.results)]).sum(0)
            network(ctx.networks, "normalizer", Normalizer).set(sums)
        if ctx.plan["stage"] != PRETRAIN:
            finetuning.take_over(ctx.networks)

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        s = self.settings
        if plan["stage"] == PRETRAIN:
            return BatchSpec(whole_batches, partial(masked_faces, s))
        return BatchSpec(balanced_batches if s.finetune.balance else None, partial(finetuning.augmented, s))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        """Weight decay on matrices and tokens, not on biases and vectors (§3.5)."""
        if plan["stage"] == PRETRAIN:
            return decayed(networks["student"])
        return finetuning.param_groups(self.settings, network(networks, "classifier", Classifier))

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """A linear rise, then half a cosine to 0, over the steps of the stage (§3.5)."""
        if step.plan["stage"] != PRETRAIN:
            return finetuning.schedule(self.settings, step, group)
        at, total = position(step)
        return {"lr": warmup_cosine(at, total, group["lr"], 0.0, int(self.settings.warmup * total))}

    def fit(self, ctx: FitContext) -> None:
        check_videos(ctx.data, ctx.validation)
        first = ctx.plan["stage"] == PRETRAIN
        if first:
            self._teacher.begin(ctx)
        elif self.settings.choosing:
            ctx.scratch["validated"] = finetuning.validated(ctx)
        if ctx.plan["stage"] != CHOOSE:
            ctx.train(pretraining(self.settings, ctx.data) if first else labeled(ctx.data))

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_m + 0.007 L_fr + 0.1 L_sim (§3.4); L_sim is not computed where its weight is 0."""
        s = self.settings
        if step.plan["stage"] != PRETRAIN:
            return finetuning.loss(s, networks, batch)
        x = networks["normalizer"](batch["image"])
        made = network(networks, "student", Student).masked(x, batch["visible"], s.similarity_weight > 0)
        errors = patch_errors(made.pixels, patch_targets(x, s.patch, s.norm_pix_loss))
        terms = {"l_m": masked_mean(errors, batch["masked"])}
        if s.region_weight:
            terms["l_fr"] = s.region_weight * masked_mean(errors, batch["region"])
        if made.prediction is not None:
            with torch.no_grad():
                z_t = networks["target"](x)
            terms["l_sim"] = s.similarity_weight * similarity_loss(made.prediction, z_t, s.similarity, s.temperature)
        return terms

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        if step.plan["stage"] == PRETRAIN and self.settings.similarity_weight:
            self._teacher.after_step(networks, step)

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        counted = self._teacher.result(ctx) if ctx.plan["stage"] == PRETRAIN else {}
        return {**counted, **ctx.scratch.get("validated", {})}

    def server_update(self, ctx: ServerContext) -> None:
        s, plan = self.settings, ctx.plan
        if plan["stage"] != PRETRAIN:
            finetuning.choose(ctx)
        elif s.similarity_weight:
            self._teacher.server_update(ctx)
        if plan["stage"] == PRETRAIN and s.finetune.rounds and plan["stage_round"] == plan["stage_rounds"]:
            finetuning.take_over(ctx.networks)


METHOD = FSFM
