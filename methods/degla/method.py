"""DeGLA: image-text contrast with slightly changed captions, while an averaged teacher keeps the embeddings close.

Hu et al., "Decoupled Global-Local Alignment for Improving Compositional Understanding", arXiv 2504.16801. Symbols: v,
t, n embeddings of image, caption and false caption; a star marks the teacher's; θ the student, θ* the teacher.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1, the server:  train a small CLIP where none is given; θ* ← θ          server_prepare
    every round, every client, for every batch of images and captions:
        n ← K false captions of each true one                                            batches → _collate
        v, t, n ← encode images, captions and false captions with θ                      loss
        L_base: v chooses t among all captions and n; t chooses v among all images       loss
        L_IGC: v prefers its t to its own n                                              loss
        L_TGC: t prefers its t* to its own n                                             loss
        L_D: v, t, n stay near v*, t*, n*                                                loss
        L = L_base + λ1 L_IGC + λ2 L_TGC + λ3 L_D; AdamW step                            loss
        θ* ← α θ* + (1 − α) θ; clamp the temperature                                     after_step
    server: average θ; θ* ← α^S θ* + (1 − α^S) θ, S the clients' mean number of steps    exchange, server_update
    every evaluation: is the true caption preferred to the false one?                    evaluate
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.blocks.pretrain import train_on_server
from fedlab.blocks.teacher import EmaTeacher, Sync
from fedlab.data.files.captions import END_TOKENS
from fedlab.distill.param_groups import decayed
from fedlab.distill.views import random_resized_crop
from fedlab.errors import ConfigError
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
)
from fedlab.methods.degla import evaluation, pictures
from fedlab.methods.degla.batches import check_columns, is_caption, with_negatives
from fedlab.methods.degla.losses import (
    Embeddings,
    base_contrast,
    image_grounded_contrast,
    self_distillation,
    text_grounded_contrast,
)
from fedlab.methods.degla.settings import TRAINED, DeGLASettings, check
from fedlab.metrics import CaptionChoice
from fedlab.models.clip import CLIP, as_clip, embed_images, embed_texts, make_clip

_LARGEST_SCALE = math.log(100)
_POLICIES: Mapping[str, Sync] = {"server_ema": "server_ema", "client_state": "local", "frozen": "frozen"}


class DeGLA(Method[DeGLASettings]):
    """Compositional fine-tuning of a CLIP model without losing its earlier abilities."""

    title = "DeGLA"
    paper = "Hu et al. 2025, arXiv 2504.16801"
    headline = (("accuracy", "server"),)
    modality = "images with captions"
    learns_from = "captions that were made false, and a teacher that is a moving average of the student"
    own_model = "CLIP"
    feature_parts = ("student", "teacher")

    Settings = DeGLASettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        check_columns(self.settings, task)
        student = make_clip(task, END_TOKENS, pretrained=self.settings.pretrained, size=self.settings.network)
        teacher = {"teacher": copy.deepcopy(student).requires_grad_(False)} if self.settings.teaches else {}
        return {"student": student, **teacher}

    @property
    def _teacher(self) -> EmaTeacher:
        s = self.settings
        policy: Sync = _POLICIES[s.teacher] if s.teaches else "frozen"
        return EmaTeacher(policy, s.alpha, evaluating=True, members=TRAINED[s.train], copies=True)

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Trained weights are averaged, and their teacher is sent down or kept; all other weights are sent once."""
        trained = TRAINED[self.settings.train]
        student = Group("student", tuple(f"student.{prefix}" for prefix in trained) or ("student",))
        teacher = self._teacher.groups() if self.settings.teaches else ()
        return student, *teacher, *((Group("backbone", mode="once"),) if trained else ())

    # before the first round

    def server_prepare(self, ctx: ServerContext) -> None:
        """Pretrain if the settings ask for it; then copy the student to the teacher, θ* = θ."""
        student, s = ctx.networks["student"], self.settings.pretrain
        if s.steps and "pretrain" not in ctx.data:
            fix = "set it to 0 and start from method.pretrained or init.student"
            raise ConfigError("method.pretrain.steps", s.steps, "server-held pairs named 'pretrain'", fix)
        if s.steps:
            train_on_server(
                ctx,
                student,
                ctx.data["pretrain"],
                _plain_contrast,
                name="degla-pretrain",
                key={},
                params=decayed,
                after_step=_clamp,
                purposes=("pretrain", "augmentation"),
                **s.model_dump(),
            )
        if self.settings.teaches:
            ctx.networks["teacher"].load_state_dict(student.state_dict())

    # the client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=self._collate)

    def _collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        batch = with_negatives(batch, self.settings, generator)
        if self.settings.crop < 1:
            batch["image"] = random_resized_crop(batch["image"], self.settings.crop, generator)
        return batch

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        return decayed(networks["student"])

    def fit(self, ctx: FitContext) -> None:
        """Train, and update the client's copy of the teacher; `teacher` decides whether this copy is kept."""
        self._teacher.begin(ctx)
        ctx.train()
        self._teacher.end(ctx)

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_base + λ1 L_IGC + λ2 L_TGC + λ3 L_D, λ3 per sample so that it does not depend on the batch's size."""
        s = self.settings
        model = as_clip(networks["student"])
        altered = s.needs_negatives or bool(s.lambda_distill)
        negatives = batch["negatives"] if altered else batch["negatives"][:, :0]
        present = batch["present"] if altered else batch["present"][:, :0]
        e, scale = _embed(model, batch["image"], batch["text"], negatives), model.logit_scale.exp()
        terms = {"base": base_contrast(e, present, scale, s.contrast)}
        if s.lambda_igc:
            terms["igc"] = s.lambda_igc * image_grounded_contrast(e, present, scale)
        if s.teaches:
            teacher = as_clip(self._teacher.of(networks, step))
            with torch.no_grad():
                star = _embed(teacher, batch["image"], batch["text"], negatives) if s.lambda_distill else None
                t_star = star.text if star else embed_texts(teacher, batch["text"])
            if s.lambda_tgc:
                terms["tgc"] = s.lambda_tgc * text_grounded_contrast(e, t_star, present, s.tgc_layout)
            if star:
                terms["distill"] = s.lambda_distill / len(e.image) * self_distillation(e, star, present)
        return terms

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        """θ* ← α θ* + (1 − α) θ, then the clamp of the scale, as released."""
        self._teacher.after_step(networks, step)
        _clamp(networks["student"])

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        return self._teacher.result(ctx)

    # the server's round

    def server_update(self, ctx: ServerContext) -> None:
        """θ* ← α^S θ* + (1 − α^S) θ, with S the clients' mean number of steps."""
        self._teacher.server_update(ctx)
        _clamp(ctx.networks["student"])  # a server optimizer may overshoot

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Cosines (n, 1 + M) of each image with its caption and with every false one, in the order of the columns."""
        found = evaluation.caption_similarities(as_clip(networks["student"]), batch)
        return torch.cat([found.pop("text")[:, None], *found.values()], dim=1)

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """The unit embeddings of the images, without their captions."""
        return Features(embed_images(as_clip(networks[part]), batch["image"]))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return evaluation.count_choices(ctx, ctx.batches()).state()

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        choice = CaptionChoice()
        choice.merge(sums)
        return choice.compute(self._apart)

    @property
    def _apart(self) -> tuple[str, ...]:
        return (*self.settings.held_out, *self.settings.unpooled)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        values: dict[str, float] = {}
        if "composition" in ctx.data:
            batches = ctx.iterate(ctx.data["composition"], ctx.training.batch_size)
            values |= evaluation.count_choices(ctx, batches).compute(self._apart)
            if self.settings.teaches:
                held = ctx.iterate(ctx.data["composition"], ctx.training.batch_size)
                values["teacher_distance"] = evaluation.teacher_distance(ctx, held)
        if "zeroshot" in ctx.data:
            values |= evaluation.zero_shot(ctx, ctx.data["zeroshot"], ctx.data["prompts"])
        return values

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return pictures.figures(ctx, self._apart)


def _embed(model: CLIP, images: Tensor, texts: Tensor, negatives: Tensor) -> Embeddings:
    """One pass of the text encoder over B captions and B·K false ones, row i·K + k the k-th of caption i."""
    both = embed_texts(model, torch.cat([texts, negatives.flatten(0, 1)]))
    count = len(texts)
    return Embeddings(
        embed_images(model, images), both[:count], both[count:].reshape(*negatives.shape[:2], both.shape[1])
    )


def _plain_contrast(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The loss of CLIP, without false captions."""
    model, none = as_clip(network), batch["text"][:, None][:, :0]
    e = _embed(model, batch["image"], batch["text"], none)
    return {"pretrain": base_contrast(e, is_caption(none), model.logit_scale.exp(), "none")}


@torch.no_grad()
def _clamp(network: nn.Module) -> None:
    as_clip(network).logit_scale.clamp_(0, _LARGEST_SCALE)


METHOD = DeGLA
