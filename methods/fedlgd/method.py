"""FedLGD: clients train on distilled local images, and the server distills global images from the update of the model.

Huang et al., "Federated Learning on Virtual Heterogeneous Data with Local-Global Dataset Distillation",
arXiv 2303.02278. Symbols: D̃_i a client's virtual images, D̃_g the global ones, ψ the feature extractor, θ the model.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1, every client:  D̃_i ← N(class means, class deviations)                   prepare
    before round 1, the server:    D̃_g ← noise from the averaged class statistics           server_prepare
    round t = 0, 1, …:             t is selected if it is one of 0, d, 2d, …, M·d            plan
        every client i:
            once:                  D̃_i ← match D_i's class means under random ψ             fit → _warm_up
            if selected, t > 0:    D̃_i ← match D_i's class means under ψ of θ_t             fit → _match
            θ_i ← SGD from θ_t on D̃_i ∪ D̃_g:  CE,  + λ·L_con where t is not selected       loss
        server:                    θ_{t+1} ← mean of θ_i, every client alike                 exchange
            if selected:           D̃_g ← match the update's gradient (θ_t − θ_{t+1}) / η    server_update
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedlab.distill import dsa
from fedlab.distill.contrastive import supervised_contrastive
from fedlab.distill.freezing import frozen
from fedlab.distill.matching import distribution_matching, gradient_distance, pseudo_gradient
from fedlab.distill.mmd import rbf_mmd
from fedlab.distill.statistics import ClassStatistics, average_statistics, class_statistics
from fedlab.method import (
    Batch,
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
from fedlab.methods.fedlgd import diagnostic
from fedlab.methods.fedlgd.pictures import contact_sheets, virtual_sets
from fedlab.methods.fedlgd.settings import FedLGDSettings, check
from fedlab.models import feature_classifier

# maps above 32 MB are allocated anew each time, which doubles the time of a forward pass
_CHUNK = 64


class FedLGD(Method[FedLGDSettings]):
    """Local-global dataset distillation for federated image classification under domain shift."""

    title = "FedLGD"
    paper = "Huang et al. 2023, arXiv 2303.02278"
    learns_from = "their own distilled images, and the server's"

    Settings = FedLGDSettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        networks = {"model": task.model()}
        if self._diagnoses:
            networks[diagnostic.ROLE] = task.model()
        return networks

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        model = Group("model", members=("model",), weight="uniform")
        return (model, diagnostic.group(plan)) if self._diagnoses else (model,)

    def plan(self, round: int, rounds: int) -> Plan:
        """§3.6: server rounds t = 0, d, …, updates·d; clients refresh in those but t = 0; CE only in all of them."""
        t, s = round - 1, self.settings
        selected = s.updates > 0 and t % s.spacing == 0 and t <= s.spacing * s.updates
        last = self._diagnoses and round == rounds
        return {"selected": selected, "refresh": selected and t > 0, "contrastive": not selected, "diagnose": last}

    @property
    def _diagnoses(self) -> bool:
        return bool(self.settings.diagnose and self.settings.ipc_global)

    # initialization (§3.3)

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        return self._initialize(ctx)._asdict()

    def server_prepare(self, ctx: ServerContext) -> None:
        answers = [ctx.results[client] for client in sorted(ctx.results)]
        statistics = average_statistics([(a["mean"], a["std"], a["present"].bool()) for a in answers])
        if self.settings.ipc_global:
            labels = torch.arange(ctx.task.num_classes, device=ctx.device).repeat_interleave(self.settings.ipc_global)
            ctx.shared["images"] = self._noise(ctx, labels, statistics, ctx.generator("global images"))

    def _initialize(self, ctx: FitContext) -> ClassStatistics:
        s, held = self.settings, (ctx.data["image"], ctx.data["label"])
        statistics = class_statistics(*held, ctx.task.num_classes, legacy=s.legacy_init_stats)
        keep = statistics.present | (s.missing_class == "keep")
        labels = keep.nonzero().flatten().repeat_interleave(s.ipc_local)
        generator = ctx.data_generator("local images")
        images = self._noise(ctx, labels, statistics, generator)
        if s.init == "real":
            for c in statistics.present.nonzero().flatten().tolist():
                found = self._real(ctx, c, s.ipc_local, generator)
                images[labels == c] = found.repeat(-(-s.ipc_local // len(found)), 1, 1, 1)[: s.ipc_local]
        ctx.state["images"], ctx.state["labels"] = images, labels
        return statistics

    def _noise(
        self, ctx: FitContext | ServerContext, labels: Tensor, statistics: ClassStatistics, generator: torch.Generator
    ) -> Tensor:
        """Pixels N(μ_c, σ_c) per channel; N(0, 1) for classes nobody knows, since a constant image has no gradient."""
        noise = ctx.place(torch.randn(len(labels), *ctx.task.input_shape, generator=generator))
        if self.settings.init == "noise":
            return noise
        std = statistics.std.masked_fill(~statistics.present[:, None], 1.0)
        return noise * std[labels][:, :, None, None] + statistics.mean[labels][:, :, None, None]

    def _global_labels(self, images: Tensor) -> Tensor:
        per_class = self.settings.ipc_global
        return torch.arange(len(images) // per_class, device=images.device).repeat_interleave(per_class)

    # the client's round (§3.7)

    def fit(self, ctx: FitContext) -> None:
        s = self.settings
        if "images" not in ctx.state:  # joined after the query before round 1
            self._initialize(ctx)
        if "warm" not in ctx.state:
            ctx.state["images"] = self._warm_up(ctx)
            ctx.state["warm"] = torch.ones(1)
        if ctx.plan["refresh"]:
            ctx.state["images"] = self._match(ctx, s.dm_steps, s.refresh_extractor == "random", "refresh", ctx.round)
        images, labels = ctx.state["images"], ctx.state["labels"]
        if s.train_on_global and "images" in ctx.shared:
            images = torch.cat([images, ctx.shared["images"]])
            labels = torch.cat([labels, self._global_labels(ctx.shared["images"])])
        ctx.train({"image": images, "label": labels})

    def _warm_up(self, ctx: FitContext) -> Tensor:
        s = self.settings
        if s.warmup_extractor == "server":
            return self._match(ctx, s.warmup_steps, False, "warm-up")
        settings = ("ipc_local", "warmup_steps", "lr_img", "img_momentum", "real_batch", "init", "legacy_init_stats")
        key = s.model_dump(mode="json", include={*settings, "missing_class", "dsa_ops"})
        key["extractor"] = repr(self._random_extractor(ctx.task, seed=0))
        found = ctx.cached("fedlgd-warmup", key, lambda: {"images": self._match(ctx, s.warmup_steps, True, "warm-up")})
        return ctx.place(found["images"])

    def _match(self, ctx: FitContext, steps: int, random: bool, *purpose: str | int) -> Tensor:
        """Distribution matching (§3.5): Σ_c ‖mean ψ(A(x)) − mean ψ(A(x̃))‖², pixels moved by SGD."""
        s, labels = self.settings, ctx.state["labels"]
        generator = ctx.data_generator(*purpose)
        virtual, optimizer = self._pixels(ctx, ctx.state["images"])
        held = set(torch.unique(ctx.data["label"]).tolist())
        classes = [c for c in torch.unique(labels).tolist() if c in held]
        extractor = ctx.networks["model"]
        losses = []
        for _ in ctx.steps(steps):
            if random:
                extractor = ctx.place(
                    self._random_extractor(ctx.task, int(torch.randint(2**62, (), generator=generator)))
                )
            real = [self._real(ctx, c, s.real_batch, generator) for c in classes]
            real_labels = torch.cat([labels.new_full((len(x),), c) for x, c in zip(real, classes, strict=True)])
            draws = {c: dsa.draw(s.dsa_ops, ctx.task.input_shape, generator) for c in classes} if s.dsa_ops else {}
            ψ = feature_classifier(extractor)
            with frozen(extractor.eval()):
                with torch.no_grad():
                    augmented = dsa.apply_per_class(torch.cat(real), real_labels, draws)
                    target = torch.cat([ψ.features(part) for part in torch.split(augmented, _CHUNK)])
                features = ψ.features(dsa.apply_per_class(virtual, labels, draws))
            loss = distribution_matching(target, features, real_labels, labels, classes)
            losses.append(ctx.step({"dm": loss}, optimizer))
        self._log_ends(ctx, "dm", losses)
        return virtual.detach()

    @staticmethod
    def _random_extractor(task: Task, seed: int) -> nn.Module:
        """The random extractor (§3.3) is always a ConvNet; that of the run if the federated model is one."""
        return task.model(None if task.model_name == "convnet" else "convnet", seed=seed)

    @staticmethod
    def _real(ctx: FitContext, c: int, most: int, generator: torch.Generator) -> Tensor:
        """Real images of class `c` without replacement."""
        found = (ctx.data["label"] == c).nonzero().flatten()
        return ctx.data["image"][found[ctx.place(torch.randperm(len(found), generator=generator)[:most])]]

    def _pixels(self, ctx: FitContext | ServerContext, images: Tensor) -> tuple[Tensor, Any]:
        """A copy of `images` to be optimized, and its optimizer."""
        s, pixels = self.settings, images.clone().requires_grad_()
        plain = {"optimizer": "sgd", "weight_decay": 0.0, "clip_norm": None}
        return pixels, ctx.optimizer([pixels], lr=s.lr_img, momentum=s.img_momentum, **plain)

    @staticmethod
    def _log_ends(ctx: FitContext | ServerContext, name: str, losses: list[float]) -> None:
        for end, value in zip(("first", "last"), losses[:1] + losses[-1:], strict=False):
            ctx.log(f"{name}_{end}", value)

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """§3.7: CE, plus λ·L_con (§3.8) in the rounds that are not selected."""
        s = self.settings
        model = feature_classifier(networks["model"])
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

    # the server's round

    def server_update(self, ctx: ServerContext) -> None:
        """Federated gradient matching (§3.9) at the old weights θ_t."""
        s = self.settings
        if ctx.plan["selected"] and s.gm_enabled and "images" in ctx.shared:
            ctx.shared["images"] = self._match_gradient(ctx)
        if ctx.plan["diagnose"]:
            diagnostic.train(ctx, ctx.shared["images"], self._global_labels(ctx.shared["images"]), s.ipc_global)

    def _match_gradient(self, ctx: ServerContext) -> Tensor:
        s, model = self.settings, ctx.networks["model"].eval()
        old, new = (
            {n.removeprefix("model."): v for n, v in side.items() if n.startswith("model.")}
            for side in (ctx.before, ctx.after)
        )
        θ = {name: old[name].clone().requires_grad_() for name, _ in model.named_parameters() if name in old}
        g_real = pseudo_gradient([old[name] for name in θ], [new[name] for name in θ], ctx.training.lr)
        virtual, optimizer = self._pixels(ctx, ctx.shared["images"])
        labels = self._global_labels(virtual)
        losses = []
        for _ in ctx.steps(s.gm_steps):
            ce = F.cross_entropy(functional_call(model, {**old, **θ}, virtual), labels)
            g_syn = torch.autograd.grad(ce, list(θ.values()), create_graph=True)
            losses.append(ctx.step({"gm": gradient_distance(g_syn, g_real, s.gm_distance)}, optimizer))
        self._log_ends(ctx, "gm", losses)
        return virtual.detach()

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        logits: Tensor = networks["model"](batch["image"])
        return logits

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return {**super().evaluate(ctx), **diagnostic.evaluate(ctx)}

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return super().evaluation_values(sums, task) | diagnostic.values(sums, task)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return contact_sheets(ctx, self.settings.ipc_global)

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Mapping[str, Tensor] | ImageGrid]:
        return virtual_sets(ctx, self._global_labels)


METHOD = FedLGD
