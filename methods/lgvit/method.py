"""LGViT: classifiers between the layers of a vision transformer, which easy samples leave early.

Xu, Hao, Shen, Hu, Luo, Lin and Shen, "LGViT: Dynamic Early Exiting for Accelerating Vision Transformer", ACM MM 2023,
arXiv 2308.00255, and the authors' code. Symbols: H_i tokens after layer i of L, P_i the patch tokens among them, Φ_i
what the head of an exit makes of P_i, z logits, CE cross-entropy with the labels, τ the threshold, n the step.

The algorithm, in the order in which it runs, and the hook that does each line::

    rounds of stage finetune (0, optional):   step on CE(z_L)                                    loss
    rounds of stage joint (1), all weights:                                                      exchange
        n even:  step on CE(z_L)                                                                 loss
        n odd:   z_i ← exit(H_i); step on [Σ_i i · CE(z_i) + L · CE(z_L)] / (Σ_i i + L)          loss → joint_terms
    rounds of stage distill (2), exits alone; backbone and last classifier are sent once more:   exchange
        L_pred = (1 − α) Σ_i CE(z_i) + α Σ_i KD(z_i, z_L)                                        loss → prediction_loss
        L_hete = Σ D(Φ, P_L) over the first and last head of each family                         loss → hete_loss
        L_homo = Σ |Φ_i − Φ_last|², Gram matrices for global heads, within each family           loss → homo_loss
        step on L_pred + λ_hete L_hete + λ_homo L_homo                                           loss
    server: average; an exit is averaged over the clients that hold it                           assets, exchange
    inference:  for every layer:  a sample whose exit satisfies the rule (max softmax z_i > τ)
                                  leaves with z_i, and no further layer is computed for it       evaluate → leave
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.stages import Stage, Stages, position
from fedlab.distill.views import draw_views, take_views
from fedlab.method import (
    Asset,
    Batch,
    BatchSpec,
    EvaluationContext,
    Features,
    FigureContext,
    Group,
    Method,
    Picture,
    Plan,
    Step,
    Task,
    network,
)
from fedlab.methods.lgvit import evaluation
from fedlab.methods.lgvit.losses import hete_loss, homo_loss, joint_terms, prediction_loss
from fedlab.methods.lgvit.networks import Backbone, Whole, build_networks, run_all
from fedlab.methods.lgvit.pictures import exit_pictures
from fedlab.methods.lgvit.settings import LGViTSettings, check

_EXIT = "exit_"


class LGViT(Method[LGViTSettings]):
    """Early exits with local perception and global aggregation heads, trained in two stages."""

    title = "LGViT"
    paper = "Xu et al. 2023, arXiv 2308.00255"
    learns_from = "labels at every exit, and then their own last layer, which teaches the exits"
    own_model = "ViT with early exits"
    feature_parts = ("backbone",)

    Settings = LGViTSettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        return build_networks(self.settings, task)

    def assets(self, task: Task) -> Mapping[str, Asset]:
        """The exits, which a weak device may have no room for. They are averaged over the clients that hold them."""
        return dict.fromkeys(f"{_EXIT}{layer}" for layer in self.settings.exits)

    def lacks(self, holds: Sequence[str]) -> str:
        return "" if holds else f"an exit ({_EXIT}{self.settings.exits[0]} or another)"

    def _held(self, holds: Sequence[str], plan: Plan) -> tuple[int, ...]:
        """The layers after which a client has an exit, in a stage in which there are any."""
        held = [layer for layer in self.settings.exits if f"{_EXIT}{layer}" in holds]
        return () if plan["stage"] == "finetune" else tuple(held)

    # stages

    @property
    def _stages(self) -> Stages:
        s = self.settings
        finetune = Stage("finetune", s.finetune_rounds, key="method.finetune_rounds")
        joint = Stage("joint", s.joint_rounds, key="method.joint_rounds")
        return Stages(finetune, joint, Stage("distill", training={"lr": s.distill_lr} if s.distill_lr else {}))

    def plan(self, round: int, rounds: int) -> Plan:
        return self._stages.plan(round, rounds)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return self._stages.training(plan)

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Each exit is a group, so that it is averaged over the clients that hold it (§6)."""
        body: Literal["once", "average"] = "once" if plan["stage"] == "distill" else "average"
        heads: Literal["rest", "average"] = "rest" if plan["stage"] == "finetune" else "average"
        fixed = (Group("backbone", ("backbone",), mode=body), Group("final", ("final",), mode=body))
        names = {f"heads.{layer}": f"{_EXIT}{layer}" for layer in self.settings.exits}
        return *fixed, *(Group(name, (name,), mode=heads, asset=asset) for name, asset in names.items())

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=self._cropped)

    def _cropped(self, batch: Batch, generator: torch.Generator) -> Batch:
        s, x = self.settings, batch["image"]
        if s.crop == 1 and not s.flip:
            return batch
        drawn = draw_views(len(x), x.shape[2:], generator, scale=(s.crop, 1.0), flip=s.flip)
        return {**batch, "image": take_views(x, drawn)}

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """§3.5, over the steps of a stage."""
        at, total = position(step)
        return {"lr": group["lr"] * (1 - at / total if self.settings.decay == "linear" else 1)}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        s, y = self.settings, batch["label"]
        layers, stage = self._held(step.holds, step.plan), step.plan["stage"]
        if stage == "distill":
            return self._distilled(networks, run_all(networks, batch["image"], layers), batch)
        odd = stage == "joint" and position(step)[0] % 2 == 1
        whole = run_all(networks, batch["image"], layers if odd else ())
        final = F.cross_entropy(whole.final, y)
        if not odd:
            return {"ce_final": final}
        return joint_terms([F.cross_entropy(one.logits, y) for one in whole.exits], layers, final, s.depth)

    def _distilled(self, networks: nn.ModuleDict, whole: Whole, batch: Batch) -> dict[str, Tensor]:
        """L_pred + λ_hete L_hete + λ_homo L_homo (§3.4), as sums over exits; only exits have gradients."""
        s, y, backbone = self.settings, batch["label"], network(networks, "backbone", Backbone)
        teacher = whole.final if s.teacher_norm else networks["final"](whole.last)
        each = whole.exits
        terms = {"ce_exits": (1 - s.alpha) * torch.stack([F.cross_entropy(one.logits, y) for one in each]).sum()}
        if s.alpha:
            kd = [prediction_loss(one.logits, teacher, s.temperature) for one in each]
            terms["l_kd"] = s.alpha * torch.stack(kd).sum()
        if s.lambda_hete:
            patches = whole.last[:, backbone.specials :]
            terms["l_hete"] = s.lambda_hete * hete_loss(each, patches, backbone.grid_of(batch["image"]))
        if s.lambda_homo:
            terms["l_homo"] = s.lambda_homo * homo_loss(each, s.detach_homo)
        return terms

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """The logits with which samples leave, where all exits are there."""
        return evaluation.predict(networks, batch, self.settings, self.settings.exits)

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Class tokens and patch tokens after the last layer, normalized."""
        backbone, x = network(networks, "backbone", Backbone), batch["image"]
        tokens = backbone(x).float()
        return Features(tokens[:, 0], tokens[:, backbone.specials :], backbone.grid_of(x))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return evaluation.evaluate(ctx, self.settings, self._held(ctx.holds, ctx.plan))

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return evaluation.values(sums, self.settings, task.num_classes)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return exit_pictures(ctx, self.settings)


METHOD = LGViT
