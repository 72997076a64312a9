"""CDA: images are recovered from a trained classifier, by a curriculum of shrinking crops, and teach new networks.

Yin and Shen, "Dataset Distillation via Curriculum Data Synthesis in Large Data Era", arXiv 2311.18838. Symbols: f the
teacher, x images, y classes, v a view, α the crop bound, η the step size, T the number of steps, τ the temperature.

The algorithm, in the order in which it runs, and the hook that does each line::

    rounds of stage squeeze:   f ← average of the clients' local training, with BN statistics      loss, exchange
    the round of stage recover, on the server or on every client:                                  fit or server_update
        x ← Gaussian noise, IPC images of every class
        for step 1 … T:        v ← a random crop of at least α(step) of the area of x;
                               x ← Adam on CE(f(v), y) + r_bn · BN distance(f, v)                  → recovered
        clients that recovered images send them up                                                 client_result
    rounds of stage post, on the server:                                                           server_update
        for every epoch:       v ← crops and mixes of x;  p ← softmax(f(v) / τ);
                               student ← a step on KL(p ‖ softmax(student(v) / τ)), times τ²
    every evaluation:          teacher, and students once they are trained, on the clients' tests  evaluate
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.stages import Stage, Stages
from fedlab.distill.bn_matching import batch_norms, from_second_moments, recalibrate, to_second_moments
from fedlab.distill.pixels import to_bytes
from fedlab.distill.views import draw_views, take_views
from fedlab.errors import ConfigError, FedLabError
from fedlab.method import (
    Batch,
    BatchSpec,
    EvaluationContext,
    FigureContext,
    FitContext,
    Group,
    ImageGrid,
    Method,
    Picture,
    Plan,
    ServerContext,
    Step,
    Task,
)
from fedlab.methods.cda.curriculum import warm_cosine
from fedlab.methods.cda.pictures import synthetic_pictures, synthetic_sets
from fedlab.methods.cda.post import PostTraining
from fedlab.methods.cda.quality import student_values
from fedlab.methods.cda.recover import recovered
from fedlab.methods.cda.settings import CDASettings, check


class CDA(Method[CDASettings]):
    """Curriculum data synthesis: squeeze by averaging, recover once, relabel and post-train on the server."""

    title = "CDA"
    paper = "Yin & Shen 2024, arXiv 2311.18838"
    learns_from = (
        "nothing extra: images are recovered from the trained network, and the server trains new networks on them"
    )

    Settings = CDASettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    # networks and stages

    def build(self, task: Task) -> dict[str, nn.Module]:
        s = self.settings
        teacher: Any = task.model()
        if not batch_norms(teacher):
            raise ConfigError(
                "model.name",
                task.model_name,
                "a teacher with BatchNorm2d layers: images are recovered from their statistics",
                "e.g. model.norm: batch, for those models that have the setting",
            )
        if s.pretrained is not None:
            if not hasattr(teacher, "load_pretrained"):
                fix = "choose model.name: resnet, or squeeze a teacher"
                raise ConfigError("method.pretrained", s.pretrained, "a model with published weights", fix)
            teacher.load_pretrained(s.pretrained, "method.pretrained")
        architectures: list[tuple[str | None, dict[str, Any]]] = [(None, {})]
        if s.post.students:
            architectures = [(c.name, c.settings) for c in s.post.students.values()]
        students = {
            f"student_{index}_{repeat}": task.model(name, **settings)
            for index, (name, settings) in enumerate(architectures)
            for repeat in range(s.post.repeats)
        }
        return {"model": teacher, **students}

    def plan(self, round: int, rounds: int) -> Plan:
        """Squeeze for some rounds, recover in one, post-train in the rest, which share the epochs evenly."""
        plan, epochs = self._stages.plan(round, rounds), self.settings.post.epochs
        if plan["stage"] != "post":
            return plan
        done, blocks = int(plan["stage_round"]) - 1, int(plan["stage_rounds"])
        return {**plan, "first": epochs * done // blocks, "last": epochs * (done + 1) // blocks}

    @property
    def _stages(self) -> Stages:
        s, epochs = self.settings, self.settings.recover.local_epochs
        tuning = {"local_epochs": epochs, "local_steps": None} if epochs else {}
        squeeze = Stage("squeeze", s.squeeze.rounds, key="method.squeeze.rounds")
        return Stages(squeeze, Stage("recover", 1, tuning), Stage("post"))

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return self._stages.training(plan)

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """The teacher is averaged, then sent once and frozen; students are not trained before the last stage."""
        # unsqueezed, all participants loaded the same weights
        after: Literal["once", "frozen"] = "once" if self.settings.squeeze.rounds else "frozen"
        teacher = Group("teacher", ("model",), mode="average" if plan["stage"] == "squeeze" else after)
        return teacher, Group("students", ("student_*",), mode="server" if plan["stage"] == "post" else "frozen")

    # squeeze

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=self._augmented)

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        s, x = self.settings.squeeze, batch["image"]
        views = draw_views(len(x), x.shape[2:], generator, scale=(s.crop, 1.0), flip=s.flip, shift=s.shift)
        return {**batch, "image": take_views(x, views)}

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        s = self.settings.squeeze
        warmup, total = (rounds * step.per_round for rounds in (s.warmup_rounds, s.rounds))
        if s.schedule == "constant" and step.global_step >= warmup:
            return {"lr": group["lr"]}
        return {"lr": group["lr"] * warm_cosine(step.global_step, total, warmup)}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](batch["image"]), batch["label"])}

    def fit(self, ctx: FitContext) -> None:
        s = self.settings
        if ctx.plan["stage"] == "squeeze":
            ctx.train()
            if s.squeeze.variance == "mixture":
                to_second_moments(ctx.networks["model"])
        elif ctx.plan["stage"] == "recover" and s.recover.form == "client":
            ctx.scratch["sent"] = self._client_images(ctx)

    # recover

    def _client_images(self, ctx: FitContext) -> dict[str, Tensor]:
        s, counts = self.settings, torch.bincount(ctx.data["label"], minlength=ctx.task.num_classes)
        teacher = self._local_teacher(ctx)
        if s.recover.images == "real":
            sent = self._real_images(ctx)
        else:
            found = recovered(ctx, teacher, counts.nonzero().flatten().tolist(), s.recover)
            ctx.state["stages"], ctx.state["stage_labels"] = found["stages"], found["stage_labels"]
            sent = {"images": found["images"], "labels": found["labels"]}
        if s.post.labels == "ensemble":
            sent |= {"counts": counts.int(), **{f"teacher/{n}": v for n, v in teacher.state_dict().items()}}
        return sent

    def _local_teacher(self, ctx: FitContext) -> nn.Module:
        """The global teacher, fine-tuned on the client's samples; it is not averaged and discarded after the round."""
        s, teacher = self.settings.recover, copy.deepcopy(ctx.networks["model"])
        if s.local_epochs:
            optimizer = ctx.optimizer(teacher.train().requires_grad_().parameters(), lr=s.local_lr)
            for batch, _ in ctx.batches():
                with ctx.autocast():
                    ce = F.cross_entropy(teacher(batch["image"]), batch["label"])
                ctx.step({"local_ce": ce}, optimizer)
        if s.local_statistics:
            recalibrate(teacher, (batch["image"] for batch in ctx.iterate(ctx.data)))
        return teacher.eval()

    def _real_images(self, ctx: FitContext) -> dict[str, Tensor]:
        """For comparison: as many private images of each class as would be recovered, if there are enough."""
        labels, ipc = ctx.data["label"], self.settings.recover.ipc
        order = ctx.place(torch.randperm(len(labels), generator=ctx.data_generator("real images")))
        chosen = torch.cat([order[labels[order] == c][:ipc] for c in torch.unique(labels)])
        images = to_bytes(ctx.data["image"][chosen], ctx.task.mean, ctx.task.std)
        return {"images": images, "labels": labels[chosen].to(torch.int16)}

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        sent: dict[str, Tensor] = ctx.scratch.get("sent", {})
        return sent

    # the server

    def server_update(self, ctx: ServerContext) -> None:
        s = self.settings
        match ctx.plan["stage"]:
            case "squeeze" if s.squeeze.variance == "mixture":
                from_second_moments(ctx.networks["model"])
            case "recover" if s.recover.form == "server":
                found = recovered(ctx, ctx.networks["model"], range(ctx.task.num_classes), s.recover)
                ctx.private.update({name: ctx.place(value) for name, value in found.items()})
            case "recover":
                self._gather(ctx)
            case "post":
                training = PostTraining(ctx, s.post)
                for role in sorted(role for role in ctx.networks if role.startswith("student_")):
                    training.train(role, int(ctx.plan["first"]), int(ctx.plan["last"]))

    @staticmethod
    def _gather(ctx: ServerContext) -> None:
        """The union of the images that the clients sent."""
        answers = {client: ctx.results[client] for client in sorted(ctx.results) if "images" in ctx.results[client]}
        if not answers:
            raise FedLabError(f"no client sent images in round {ctx.round}: there is nothing to train students on")
        ctx.private["images"] = torch.cat([sent["images"] for sent in answers.values()])
        ctx.private["labels"] = torch.cat([sent["labels"] for sent in answers.values()])
        for client, sent in answers.items():
            if "counts" in sent:
                ctx.private[f"counts/{client:08d}"] = sent["counts"]
                for name, value in sent.items():
                    if name.startswith("teacher/"):
                        ctx.private[f"teacher/{client:08d}/{name.removeprefix('teacher/')}"] = value

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """The first student alone."""
        return _logits(networks["student_0_0"], batch)

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        """Statistics of the teacher, and of every student once they are being trained, by role."""
        roles = [role for role in ctx.networks if role == "model" or ctx.plan["stage"] == "post"]
        sums: dict[str, np.ndarray] = {}
        for role in roles:
            found = ctx.classification(partial(_logits, ctx.networks[role]))
            sums |= {f"{role}/{name}": value for name, value in found.items()}
        return sums

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return student_values(sums, task.num_classes, tuple(self.settings.post.students))

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return synthetic_pictures(ctx, self.settings)

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Mapping[str, Tensor] | ImageGrid]:
        return synthetic_sets(ctx)


def _logits(network: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = network(batch["image"])
    return logits


METHOD = CDA
