"""ASiT: a student restores corrupted spectrograms and learns to agree with its teacher on clips and on patches.

Atito, Awais, Wang, Plumbley, Kittler, "ASiT: Local-Global Audio Spectrogram vIsion Transformer for Event
Classification", arXiv 2211.13189. Symbols: s, t logits of student and teacher, p targets, c centers, τ temperatures,
m momentum of the teacher.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1:  mean and deviation of all clients' spectrograms                       prepare, server_prepare
    every round of pre-training, every client, for every batch of clips:
        x, x' ← two windows of each clip; corrupt groups of patches of both (GMML)         batches → pretraining_views
        t ← teacher(x); p ← softmax((t − c) / τ_t), for clips and for patches              loss
        s, x̂ ← student(corrupted x)                                                       loss
        L = L_cls(p of the other window, s) + L_dat(p of the patch, s) + 2 L_rec(x̂, x)    loss
        AdamW step; centers c ← average with the batch's t                                 schedule, after_step
        teacher ← m · teacher + (1 − m) · student                                          after_step
    server: average student and centers; average, move, reset or leave the teacher         exchange, server_update
    every evaluation: a linear probe on the teacher's frozen features                      server_evaluate
    last rounds, where asked for: fine-tune the teacher with a classification head         plan → finetuning
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.blocks.averages import average_late
from fedlab.blocks.labels import evaluate_labels, label_values, measure_on_server
from fedlab.blocks.stages import Stage, Stages, position
from fedlab.blocks.teacher import EmaTeacher
from fedlab.data.batching import balanced_batches, whole_batches
from fedlab.distill.gmml import reconstruction_loss
from fedlab.distill.multiview import cross_view_loss
from fedlab.distill.param_groups import decayed
from fedlab.distill.prototypes import entropy, prototype_cross_entropy, sharpened
from fedlab.distill.schedules import cosine, linear, warmup_cosine
from fedlab.errors import DataError
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
from fedlab.methods.asit import evaluation, finetuning, views
from fedlab.methods.asit.networks import Centers, Student, Tagger, Teacher
from fedlab.methods.asit.pictures import repairs
from fedlab.methods.asit.settings import ASiTSettings, check
from fedlab.metrics.reconstruction import KEY, MaskedError
from fedlab.models.filterbank import FilterBank
from fedlab.models.spectra import Normalizer, filterbank_sums

_STATISTICS_MODES: Any = {"global": "once", "local": "local", "fixed": "frozen"}


class ASiT(Method[ASiTSettings]):
    """Local-global self-supervised spectrogram transformer, with a fine-tuning stage."""

    title = "ASiT"
    paper = "Atito et al. 2022, arXiv 2211.13189"
    headline = (("probe_accuracy", "server"),)
    modality = "sounds"
    learns_from = "corrupted spectrograms that they restore, and a teacher that is a moving average of the student"
    own_model = "ViT with reconstruction head"
    feature_parts = ("teacher", "student")

    Settings = ASiTSettings

    def check(self, config: Any) -> list[str]:
        rounds = config.federation.rounds - self.settings.finetune_rounds
        return [*check(self.settings, config), *self._teacher.warnings(config, rounds)]

    def build(self, task: Task) -> dict[str, nn.Module]:
        s = self.settings
        if "audio" not in task.columns or len(task.columns["audio"][1]) != 1:
            fix = "use the source sounds or audio_folder"
            raise DataError("data.source", list(task.columns), "clips in a column 'audio'", fix)
        size = views.input_size(s, s.window)
        student, teacher = Student(s, size), Teacher(s, size)
        teacher.load_state_dict({n: v for n, v in student.state_dict().items() if not n.startswith("reconstruction.")})
        networks = {
            "student": student,
            "teacher": teacher.requires_grad_(False),
            "centers": Centers(s),
            "normalizer": Normalizer(s.mean, s.std),
        }
        if s.finetune_rounds:
            finetuning.check_labels(s, task)
            networks["tagger"] = Tagger(s, size, task.num_classes)
        return networks

    # what travels (§6)

    @property
    def _stages(self) -> Stages:
        s = self.settings
        return Stages(
            Stage("pretrain"), Stage("finetune", s.finetune_rounds, s.finetune_training, "method.finetune_rounds")
        )

    def plan(self, round: int, rounds: int) -> Plan:
        return self._stages.plan(round, rounds)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return self._stages.training(plan)

    @property
    def _teacher(self) -> EmaTeacher:
        s = self.settings
        return EmaTeacher(s.teacher_sync, partial(cosine, start=s.momentum, end=1.0), beside=("centers",))

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Before fine-tuning, everything but the tagger is exchanged; then only the tagger; the rest is unchanged."""
        s, tuning = self.settings, _tunes(plan)
        groups = (
            Group("student", ("student",), "rest" if tuning else "average"),
            *self._teacher.groups(resting=tuning),
            Group("statistics", ("normalizer",), _STATISTICS_MODES[s.statistics]),
        )
        tagger = Group("tagger", ("tagger",), "average" if tuning else "local")
        return (*groups, tagger) if s.finetune_rounds else groups

    # before the first round

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        if self.settings.statistics != "global":
            return {}
        return {"sums": self._sums(ctx, ctx.data)}

    def _sums(self, ctx: FitContext | ServerContext, columns: Mapping[str, Tensor]) -> Tensor:
        return filterbank_sums(FilterBank(self.settings.rate, self.settings.bins), ctx.iterate(columns))

    def server_prepare(self, ctx: ServerContext) -> None:
        s = self.settings
        normalizer = network(ctx.networks, "normalizer", Normalizer)
        if s.statistics == "global":
            normalizer.set(torch.stack([ctx.results[client]["sums"] for client in sorted(ctx.results)]).sum(0))
        elif s.statistics == "local" and "probe" in ctx.data:
            normalizer.set(self._sums(ctx, ctx.data["probe"]))
        evaluation.remember_start(ctx, s)
        if _tunes(ctx.plan):
            finetuning.take_over(ctx.networks, s)

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        s = self.settings
        if _tunes(plan):
            sampler = balanced_batches if s.finetune_balanced else None
            return BatchSpec(sampler, lambda batch, generator: views.finetuning_clips(s, batch, generator))
        return BatchSpec(whole_batches, lambda batch, generator: views.pretraining_views(s, batch, generator))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        """Weight decay on matrices and maps, not on biases and vectors (§3.5)."""
        return decayed(networks["tagger" if _tunes(plan) else "student"])

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """§3.5, over the steps of all rounds of pre-training."""
        s = self.settings
        if _tunes(step.plan):
            return finetuning.schedule(s, step, group)
        at, total = position(step)
        warmup = total * s.warmup_epochs // s.epochs
        lr = warmup_cosine(at, total, group["lr"], s.final_lr, warmup)
        return {"lr": lr, "weight_decay": cosine(at, total, *s.weight_decay) if group["decays"] else 0.0}

    def _epoch(self, step: Step) -> int:
        """Which of the `epochs` parts of pre-training a step is in."""
        at, total = position(step)
        return at * self.settings.epochs // total

    def fit(self, ctx: FitContext) -> None:
        s = self.settings
        if s.statistics == "local":
            network(ctx.networks, "normalizer", Normalizer).set(self._sums(ctx, ctx.data))
        if not _tunes(ctx.plan):
            self._teacher.begin(ctx)
        ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_cls + L_dat + 2 L_rec (§3.4)."""
        if _tunes(step.plan):
            return finetuning.loss(self.settings, networks, batch)
        s, nets = self.settings, dict[str, Any](networks.items())
        clean = nets["normalizer"](batch["fbank"])
        epoch = self._epoch(step)
        with torch.no_grad():
            t = nets["teacher"](clean)
        frozen = epoch < s.freeze_prototypes_epochs
        logits, reconstruction = nets["student"].outputs(views.corrupted(clean, batch), frozen=frozen)
        τ_t, τ_s = linear(epoch, s.temperature_epochs, *s.teacher_temperature), s.student_temperature
        c = nets["centers"]
        p_c, p_p = sharpened(t.classes, c.classes.value, τ_t), sharpened(t.patches, c.patches.value, τ_t)
        step.scratch["means"] = t.classes.float().mean(0), t.patches.float().mean(0)
        step.log("target_entropy_class", float(entropy(p_c).mean()) / np.log(s.class_prototypes))
        step.log("target_entropy_patch", float(entropy(p_p).mean()) / np.log(s.patch_prototypes))
        terms = {
            "l_cls": (s.class_weight, cross_view_loss(p_c.chunk(2), logits.classes.chunk(2), τ_s)),
            "l_dat": (s.patch_weight, prototype_cross_entropy(p_p, logits.patches, τ_s)),
            "l_rec": (s.reconstruction_weight, reconstruction_loss(reconstruction, clean, batch["mask"])),
        }
        return {name: weight * term for name, (weight, term) in terms.items() if weight}

    @torch.no_grad()
    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        """Centers, then the teacher: m from 0.996 to 1 by cosine."""
        if _tunes(step.plan):
            return
        centers = network(networks, "centers", Centers)
        for center, mean in zip((centers.classes, centers.patches), step.scratch.pop("means"), strict=True):
            center.update(mean)
        self._teacher.after_step(networks, step)

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        return {} if _tunes(ctx.plan) else self._teacher.result(ctx)

    # the server's round

    def server_update(self, ctx: ServerContext) -> None:
        if _tunes(ctx.plan):
            average_late(ctx, "tagger", self.settings.finetune_average)
            return
        self._teacher.server_update(ctx)
        if ctx.plan["stage_round"] == ctx.plan["stage_rounds"] and self.settings.finetune_rounds:
            finetuning.take_over(ctx.networks, self.settings)

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Logits of the tagger (n, K); without one the teacher's features, (n, 2 D): class token, mean patch token."""
        if "tagger" in networks:
            return finetuning.predict(self.settings, networks, batch)
        return torch.cat(evaluation.features(self.settings, networks, batch), dim=1)

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Mean patch tokens of a backbone as vectors, and the patch tokens, means over the views of a clip."""
        tokens = evaluation.mean_tokens(self.settings, networks, batch, part)[:, 1:]
        rows, columns = network(networks, part, Teacher).backbone.grid
        return Features(tokens.mean(1), tokens, (rows, columns))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        if _tunes(ctx.plan):
            return evaluate_labels(ctx, partial(finetuning.predict, self.settings, ctx.networks))
        return evaluation.evaluate(ctx, self.settings)

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        if KEY not in sums:
            return label_values(sums, task)
        metric = MaskedError()
        metric.merge(sums)
        return metric.compute()

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        measured = evaluation.probe(ctx, self.settings) if {"probe", "test"} <= ctx.data.keys() else {}
        measured |= evaluation.collapse(ctx, self.settings) if "test" in ctx.data else {}
        if measured.get("collapse_alarm"):
            ctx.alarm(evaluation.COLLAPSE)
        if _tunes(ctx.plan) and "test" in ctx.data:
            tested = measure_on_server(ctx, "test", partial(finetuning.predict, self.settings, ctx.networks))
            measured |= {f"finetune_{name}": value for name, value in tested.items()}
        return measured

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return repairs(ctx, self.settings)


def _tunes(plan: Plan) -> bool:
    return plan["stage"] == "finetune"


METHOD = ASiT
