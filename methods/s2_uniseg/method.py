"""S2-UniSeg: a student segments crops as UniAP, pooling a teacher's features, segments the whole image.

Xu et al., "S2-UniSeg: Fast Universal Agglomerative Pooling for Scalable Segment Anything without Supervision",
arXiv 2508.06995. Symbols: F features at stride 4, V features of regions, t, s logits of teacher and student over
prototypes, p targets, c centers, τ temperatures, m momentum of the teacher, δ number of crops.

The algorithm, in the order in which it runs, and the hook that does each line::

    every round, every client, for every batch of images:
        δ crops of each image                                                       batch_spec → training_views
        F ← teacher's encoder(whole images); regions, V ← UniAP(F)                  loss → regions_of
        masks, queries ← student's decoder(student's encoder(crops))                loss → Student.decode
        crop the regions; match [INS] with instances, [SEM] with semantic regions   loss → matched
        L_Q = H(p, s) of matched pairs, p = softmax((t(V) − c) / τ_t)               loss
        L = L_Q + 5 L_bce + 5 L_dice of the masks after every layer                 loss
        AdamW step; c ← average with the batch's t                                  schedule, after_step
    server: average student and centers; teacher ← m^steps · teacher + …            exchange, server_update
    every evaluation: teacher's encoder with the student's decoder, whole images    Segmenting (evaluation.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.distill.mask_matching import mask_losses
from fedlab.distill.param_groups import decayed
from fedlab.distill.prototypes import entropy, prototype_cross_entropy
from fedlab.distill.schedules import cosine, linear, warmup_cosine
from fedlab.method import Batch, BatchSpec, FitContext, Group, Plan, ServerContext, Step, Task, network
from fedlab.methods.s2_uniseg.evaluation import Segmenting
from fedlab.methods.s2_uniseg.matching import matched, regions_of
from fedlab.methods.s2_uniseg.networks import Centers, Student, Teacher, make_backbone, pyramid_of, targets_of
from fedlab.methods.s2_uniseg.settings import S2UniSegSettings, check, ema
from fedlab.methods.s2_uniseg.views import check_images, crops_of, training_views


class S2UniSeg(Segmenting):
    """Instance, semantic and panoptic segmentation from unlabeled images."""

    title = "S2-UniSeg"
    paper = "Xu et al. 2025, arXiv 2508.06995"
    headline = (("ap", "server"), ("region_recall", "server"))
    own_model = "Mask2Former on an adapted backbone"
    learns_from = "regions that are pooled from the features of a teacher, a moving average of the student's encoder"

    Settings = S2UniSegSettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        s, channels = self.settings, check_images(self.settings, task)
        student, teacher = Student(s, channels), Teacher(s, channels).requires_grad_(False)
        teacher.load_state_dict({name: student.state_dict()[name] for name in teacher.state_dict()})
        built: dict[str, nn.Module] = {"student": student, "teacher": teacher, "centers": Centers(s)}
        if not s.backbone.trained:
            built["backbone"] = make_backbone(s.backbone, channels)
        return built

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Student and centers are averaged, the teacher follows on the server, a frozen backbone is sent once (§6)."""
        frozen = () if self.settings.backbone.trained else (Group("backbone", ("backbone",), "once"),)
        return (Group("student", ("student",)), *ema(self.settings).groups(), *frozen)

    def server_update(self, ctx: ServerContext) -> None:
        ema(self.settings).server_update(ctx)

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=lambda batch, generator: training_views(self.settings, batch, generator))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        return decayed(networks["student"], tokens=False)

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Linear warm-up, then cosines, over the steps of all rounds."""
        s, at, total = self.settings, step.global_step, step.total_steps
        decay = cosine(at, total, *s.weight_decay) if group["decays"] else 0.0
        return {"lr": warmup_cosine(at, total, group["lr"], s.final_lr, int(s.warmup * total)), "weight_decay": decay}

    def set_modes(self, networks: nn.ModuleDict, plan: Plan) -> None:
        ema(self.settings).set_modes(networks)

    def fit(self, ctx: FitContext) -> None:
        ema(self.settings).begin(ctx)
        ctx.train()

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        """The number of steps, by which the server moves the teacher."""
        return ema(self.settings).result(ctx)

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_Q + w_m L_bce + w_d L_dice over matched pairs (§3.3); a term of weight 0 is left out."""
        s, whole, crops = self.settings, batch["whole"], crops_of(batch)
        student, teacher = network(networks, "student", Student), network(networks, "teacher", Teacher)
        with torch.no_grad():
            regions = regions_of(s, pyramid_of(networks, "teacher", whole))
            t = teacher.codes(regions.features).float()
        made = student.decode(pyramid_of(networks, "student", batch["crops"]))
        pairs = matched(s, regions, len(whole), crops, made.masks[-1])
        step.log("regions", len(t) / len(whole))
        step.log("pairs", len(pairs) / len(crops.boxes))
        if not len(pairs):
            return {}
        step.scratch["taught"] = t, regions.semantic
        terms: dict[str, Tensor] = {}
        if s.query_weight:
            τ_t = linear(step.global_step, int(s.temperature_warmup * step.total_steps), *s.teacher_temperature)
            rows = pairs.regions
            p = targets_of(t[rows], regions.semantic[rows], network(networks, "centers", Centers).values, τ_t)
            frozen = step.global_step < int(s.freeze_prototypes * step.total_steps)
            logits = student.logits(made.queries[-1][pairs.views, pairs.queries], frozen=frozen)
            terms["l_q"] = s.query_weight * prototype_cross_entropy(p, logits, s.student_temperature)
            step.log("target_entropy", float(entropy(p).mean()) / math.log(s.prototypes))
        if s.mask_weight or s.dice_weight:
            layers = [mask_losses(m[pairs.views, pairs.queries].float(), pairs.masks) for m in made.masks]
            bce, dice = (torch.stack(parts).sum() for parts in zip(*layers, strict=True))
            weighted = {"l_bce": (s.mask_weight, bce), "l_dice": (s.dice_weight, dice)}
            terms |= {name: weight * value for name, (weight, value) in weighted.items() if weight}
        return terms

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        network(networks, "centers", Centers).update(*step.scratch.pop("taught"))
        ema(self.settings).after_step(networks, step)


METHOD = S2UniSeg
