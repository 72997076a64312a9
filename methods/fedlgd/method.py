"""FedLGD: clients train on distilled local images, the server distils global ones from the model's update.

Huang et al., "Federated Learning on Virtual Heterogeneous Data with Local-Global Dataset Distillation",
arXiv 2303.02278. Symbols: D̃_i a client's virtual images, D̃_g the global ones, ψ the feature extractor, θ the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedlab.config import Section
from fedlab.context import FigureContext, FitContext, ServerContext
from fedlab.distill import dsa
from fedlab.distill.contrastive import supervised_contrastive
from fedlab.distill.freezing import frozen
from fedlab.distill.matching import distribution_matching, gradient_distance, pseudo_gradient
from fedlab.distill.mmd import rbf_mmd
from fedlab.distill.statistics import average_statistics, class_statistics
from fedlab.method import Batch, Group, Method, Plan, Step, Task
from fedlab.methods.fedlgd.pictures import contact_sheets, virtual_sets
from fedlab.pictures import ImageGrid, Picture


class FedLGD(Method):
    """Local-global dataset distillation for federated image classification under domain shift."""

    title = "FedLGD"
    paper = "Huang et al. 2023, arXiv 2303.02278"

    class Settings(Section):
        """Settings; defaults are the paper's for its DIGITS benchmark."""

        ipc_local: int = Field(default=50, ge=1, description="virtual images per class of a client")
        ipc_global: int = Field(default=10, ge=0, description="global virtual images per class; 0 is none")
        warmup_steps: int = Field(default=10_000, ge=0, description="matching steps before a client's first round")
        dm_steps: int = Field(default=100, ge=0, description="distribution-matching steps of a refresh")
        gm_steps: int = Field(default=500, ge=0, description="gradient-matching steps of a server update")
        lr_img: float = Field(default=1.0, gt=0, description="learning rate of the pixels")
        img_momentum: float = Field(default=0.5, ge=0, lt=1, description="momentum of the pixels")
        real_batch: int = Field(default=256, ge=1, description="real images of a class per matching step, at most")
        spacing: int = Field(default=5, ge=1, description="rounds between selected rounds")
        updates: int = Field(default=10, ge=0, description="selected rounds are 0, d, …, updates·d; 0 selects none")
        lambda_reg: float = Field(default=10.0, ge=0, description="λ of the regulariser")
        reg: Literal["contrastive", "mmd", "none"] = Field(default="contrastive", description="the regulariser")
        temperature: float = Field(default=0.07, gt=0, description="of the contrastive loss")
        gm_distance: Literal["rowcos", "mse", "cos"] = Field(default="rowcos", description="between gradients")
        init: Literal["normal", "noise", "real"] = Field(
            default="normal", description="first virtual images: class statistics, N(0, 1), or real images (leaks data)"
        )
        legacy_init_stats: bool = Field(default=False, description="the release's class statistics, divided wrongly")
        missing_class: Literal["drop", "keep"] = Field(
            default="drop", description="classes a client has no image of: leave out of D̃_i, or keep as noise"
        )
        dsa_ops: tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...] = Field(
            default=("color", "crop", "cutout", "scale", "rotate"),
            description="augmentations of distribution matching; flip is wrong for digits",
        )
        warmup_extractor: Literal["random", "server"] = Field(default="random", description="ψ of the warm-up")
        refresh_extractor: Literal["server", "random"] = Field(default="server", description="ψ of a refresh")
        train_on_global: bool = Field(default=True, description="train on D̃_i ∪ D̃_g, as released, or on D̃_i alone")
        gm_enabled: bool = Field(default=True, description="false leaves D̃_g as initialised (frozen anchors)")

    def check(self, config: Any) -> list[str]:
        s, rounds = self.settings, config.federation.rounds
        warnings = []
        if s.updates * s.spacing > rounds:
            warnings.append(f"method.updates · spacing = {s.updates * s.spacing} exceeds {rounds} rounds")
        if s.init == "real":
            warnings.append("method.init = real starts from private images: virtual images then leak them")
        if config.training.weight_decay and s.gm_enabled and s.updates:
            warnings.append("training.weight_decay adds θ to the gradient that the server matches")
        return warnings

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": task.model()}

    def exchange(self) -> tuple[Group, ...]:
        return (Group("model", weight="uniform"),)

    def plan(self, round: int, rounds: int) -> Plan:
        """§3.6: server rounds t = 0, d, …, updates·d; clients refresh in those but t = 0; CE only in all of them."""
        t, s = round - 1, self.settings
        selected = s.updates > 0 and t % s.spacing == 0 and t <= s.spacing * s.updates
        return {"selected": selected, "refresh": selected and t > 0, "contrastive": not selected}

    # initialisation

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        mean, std, present = self._statistics(ctx)
        self._initialise(ctx, mean, std, present)
        return {"mean": mean, "std": std, "present": present}

    def server_prepare(self, ctx: ServerContext) -> None:
        answers = [ctx.results[client] for client in sorted(ctx.results)]
        mean, std, _ = average_statistics([(a["mean"], a["std"], a["present"].bool()) for a in answers])
        if self.settings.ipc_global:
            classes = torch.arange(ctx.task.num_classes)
            noise = self._noise(self.settings.ipc_global * len(classes), ctx.task, ctx.generator("global images"))
            ctx.tensors["images"] = self._coloured(ctx.place(noise), self._labels(classes, "global"), mean, std)

    def _statistics(self, ctx: FitContext) -> tuple[Tensor, Tensor, Tensor]:
        s = self.settings
        return class_statistics(ctx.data["image"], ctx.data["label"], ctx.task.num_classes, legacy=s.legacy_init_stats)

    def _initialise(self, ctx: FitContext, mean: Tensor, std: Tensor, present: Tensor) -> None:
        keep = torch.ones_like(present) if self.settings.missing_class == "keep" else present
        labels = self._labels(keep.nonzero().flatten(), "local")
        generator = ctx.data_generator("local images")
        if self.settings.init == "real":
            images = torch.cat(
                [self._real(ctx, c, self.settings.ipc_local, generator) for c in labels.unique().tolist()]
            )
        else:
            images = self._coloured(ctx.place(self._noise(len(labels), ctx.task, generator)), labels, mean, std)
        ctx.state["images"] = images
        ctx.state["labels"] = labels

    def _coloured(self, noise: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        if self.settings.init == "noise":
            return noise
        return noise * std[labels][:, :, None, None] + mean[labels][:, :, None, None]

    @staticmethod
    def _noise(count: int, task: Task, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *task.input_shape, generator=generator)

    def _labels(self, classes: Tensor, side: Literal["local", "global"]) -> Tensor:
        return classes.repeat_interleave(self.settings.ipc_local if side == "local" else self.settings.ipc_global)

    # the client's round

    def fit(self, ctx: FitContext) -> None:
        if "images" not in ctx.state:  # joined after the query before round 1
            self._initialise(ctx, *self._statistics(ctx))
        if "warm" not in ctx.state:
            ctx.state["images"] = ctx.place(self._warm_up(ctx))
            ctx.state["warm"] = torch.ones(1)
        if ctx.plan["refresh"]:
            random = self.settings.refresh_extractor == "random"
            ctx.state["images"] = self._match(ctx, self.settings.dm_steps, random, "refresh", ctx.round)
        images, labels = ctx.state["images"], ctx.state["labels"]
        if self.settings.train_on_global and "images" in ctx.shared:
            images = torch.cat([images, ctx.shared["images"]])
            labels = torch.cat([labels, self._global_labels(ctx.shared["images"])])
        ctx.train({"image": images, "label": labels})

    def _warm_up(self, ctx: FitContext) -> Tensor:
        s = self.settings
        if s.warmup_extractor == "server":
            return self._match(ctx, s.warmup_steps, False, "warm-up")
        settings = ("ipc_local", "warmup_steps", "lr_img", "img_momentum", "real_batch", "init", "legacy_init_stats")
        key = s.model_dump(mode="json", include={*settings, "missing_class", "dsa_ops"})
        extractor = repr(self._random_extractor(ctx.task, seed=0))
        found = ctx.cached(
            "fedlgd-warmup",
            {**key, "extractor": extractor},
            lambda: {"images": self._match(ctx, s.warmup_steps, True, "warm-up")},
        )
        return found["images"]

    def _match(self, ctx: FitContext, steps: int, random: bool, *purpose: str | int) -> Tensor:
        """Distribution matching (§3.5): Σ_c ‖mean ψ(A(x)) − mean ψ(A(x̃))‖², pixels moved by SGD."""
        s, labels = self.settings, ctx.state["labels"]
        generator = ctx.data_generator(*purpose)
        virtual = ctx.state["images"].clone().requires_grad_()
        optimiser = ctx.optimiser(
            [virtual], optimiser="sgd", lr=s.lr_img, momentum=s.img_momentum, weight_decay=0.0, clip_norm=None
        )
        held = {int(c) for c in ctx.data["label"].unique()}
        classes = [c for c in labels.unique().tolist() if c in held]
        losses = []
        for _ in ctx.steps(steps):
            ψ = ctx.networks["model"]
            if random:
                seed = int(torch.randint(2**62, (), generator=generator))
                ψ = ctx.place(self._random_extractor(ctx.task, seed))
            real = [self._real(ctx, c, s.real_batch, generator, exact=False) for c in classes]
            real_labels = torch.cat([labels.new_full((len(x),), c) for x, c in zip(real, classes, strict=True)])
            draws = {c: dsa.draw(s.dsa_ops, ctx.task.input_shape, generator) for c in classes} if s.dsa_ops else {}
            with frozen(ψ):
                with torch.no_grad():
                    target = ψ.features(dsa.apply_per_class(torch.cat(real), real_labels, draws))
                features = ψ.features(dsa.apply_per_class(virtual, labels, draws))
            loss = distribution_matching(target, features, real_labels, labels, classes)
            losses.append(ctx.step({"dm": loss}, optimiser))
        if losses:
            ctx.log("dm_first", losses[0])
            ctx.log("dm_last", losses[-1])
        return virtual.detach()

    @staticmethod
    def _random_extractor(task: Task, seed: int) -> nn.Module:
        """§3.3: always a ConvNet; the run's own where the federated model is one."""
        return task.model(None if task.model_name == "convnet" else "convnet", seed=seed)

    @staticmethod
    def _real(ctx: FitContext, c: int, count: int, generator: torch.Generator, exact: bool = True) -> Tensor:
        """`count` real images of class `c` without replacement; `exact` repeats images where there are too few."""
        found = (ctx.data["label"] == c).nonzero().flatten()
        order = torch.randperm(len(found), generator=generator)
        if exact and len(order) < count:
            order = order.repeat(-(-count // max(1, len(order))))
        return ctx.data["image"][found[ctx.place(order[:count])]]

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """§3.7: CE, plus λ·L_con (§3.8) in the rounds that are not selected."""
        s, model = self.settings, networks["model"]
        z = model.features(batch["image"])
        terms = {"ce": F.cross_entropy(model.head(z), batch["label"])}
        if step.plan["contrastive"] and s.lambda_reg and s.reg != "none" and "images" in step.shared:
            z_g, y_g = model.features(step.shared["images"]), self._global_labels(step.shared["images"])
            if s.reg == "mmd":
                terms["mmd"] = s.lambda_reg * rbf_mmd(z, z_g)
            else:
                both, labels = torch.cat([z, z_g]), torch.cat([batch["label"], y_g])
                terms["contrastive"] = s.lambda_reg * supervised_contrastive(both, labels, s.temperature)
        return terms

    def _global_labels(self, images: Tensor) -> Tensor:
        classes = torch.arange(len(images) // self.settings.ipc_global, device=images.device)
        return self._labels(classes, "global")

    # the server's round

    def server_update(self, ctx: ServerContext) -> None:
        """Federated gradient matching (§3.9) at the old weights θ_t."""
        s = self.settings
        if not (ctx.plan["selected"] and s.gm_enabled and "images" in ctx.tensors):
            return
        model = ctx.networks["model"]
        names = [name for name, p in model.named_parameters() if f"model.{name}" in ctx.before]
        θ = {name: ctx.before[f"model.{name}"].clone().requires_grad_() for name in names}
        after: Mapping[str, Tensor] = ctx.after
        g_real = pseudo_gradient([θ[n].detach() for n in names], [after[f"model.{n}"] for n in names], ctx.training.lr)
        virtual = ctx.tensors["images"].clone().requires_grad_()
        labels = self._global_labels(virtual)
        optimiser = ctx.optimiser(
            [virtual], optimiser="sgd", lr=s.lr_img, momentum=s.img_momentum, weight_decay=0.0, clip_norm=None
        )
        losses = []
        for _ in ctx.steps(s.gm_steps):
            ce = F.cross_entropy(functional_call(model, θ, virtual), labels)
            g_syn = torch.autograd.grad(ce, list(θ.values()), create_graph=True)
            losses.append(ctx.step({"gm": gradient_distance(g_syn, g_real, s.gm_distance)}, optimiser))
        ctx.tensors["images"] = virtual
        if losses:
            ctx.log("gm_first", losses[0])
            ctx.log("gm_last", losses[-1])

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return contact_sheets(ctx, self.settings.ipc_global)

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Mapping[str, Tensor] | ImageGrid]:
        return virtual_sets(ctx, self._global_labels)


METHOD = FedLGD
