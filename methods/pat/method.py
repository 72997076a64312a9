"""PAT: part tokens learn features that different people share, for re-identification in unseen places.

Ni, Li, Gao, Shen and Song, "Part-Aware Transformer for Generalizable Person Re-identification", arXiv 2308.03322.
Symbols: g the cls feature, f^k that of part k, W the memory of part features, q the neighbors' identities.

The algorithm, in the order in which it runs, and the hook that does each line::

    every round, every client:
        W ← part features of all its images, one pass                           fit → _bank
        for every batch of P identities with K images each:                     batches
            flip, pad and crop, erase; draw a rectangle for every part          _collate
            g, f^1 … f^3 ← backbone(images, rectangles)                         loss
            W[rows of the batch] ← momentum average with f^k                    loss
            L_CSL: f^k near the most similar parts of other people in W         loss
            q ← identities of these neighbors, the targets of PSD              loss
            L = L_ID(classifier(BN(g)), label and q) + L_tri(g) + L_CSL         loss
    server: average backbone and neck; classifiers stay with the clients        exchange
    every evaluation: rank the gallery of an unseen place by the cosine of g    server_evaluate
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.data.batching import identity_batches
from fedlab.distill.memory import MemoryBank
from fedlab.distill.param_groups import faster_biases
from fedlab.distill.schedules import cosine
from fedlab.distill.triplet import batch_hard_triplet
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
from fedlab.methods.pat.batches import augment
from fedlab.methods.pat.evaluation import extract
from fedlab.methods.pat.losses import (
    cross_id_similarity,
    identity_loss,
    neighbor_distribution,
    neighbor_probability,
    soft_targets,
)
from fedlab.methods.pat.masks import PARTS, draw_rectangles
from fedlab.methods.pat.networks import PartViT, classifier, neck, start_from
from fedlab.methods.pat.pictures import attention, ranked_lists
from fedlab.methods.pat.settings import PATSettings, check, check_images
from fedlab.metrics.purity import neighbor_purity
from fedlab.metrics.retrieval import Retrieval, search


class PAT(Method[PATSettings]):
    """Part-aware transformer for generalizable person re-identification."""

    title = "PAT"
    paper = "Ni et al. 2023, arXiv 2308.03322"
    headline = (("mAP", "server"), ("rank1", "server"))
    modality = "pictures of people"
    learns_from = "parts of the picture that resemble those of other people"
    own_model = "ViT with part tokens"
    evaluation_unit = "queries"
    feature_parts = ("backbone",)

    Settings = PATSettings

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        s = self.settings
        image = check_images(s, task)
        parts = PARTS if s.parts else 0
        backbone = PartViT(image, s.patch, s.width, s.depth, s.heads, s.mlp_ratio, parts, s.drop_path)
        if s.pretrained:
            start_from(backbone, s.pretrained)
        return {"backbone": backbone, "neck": neck(s.width), "classifier": classifier(s.width, task.num_classes)}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Identities differ between clients, so each client keeps its own classifier and its own memory."""
        s = self.settings
        frozen = (Group("patches", members=("backbone.patch",), mode="once"),) if s.freeze_patches else ()
        return (
            *frozen,
            Group("backbone", members=("backbone",)),
            Group("neck", members=("neck",), buffers=s.neck_statistics),
            Group("classifier", members=("classifier",), mode="local"),
        )

    # batches

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(sampler=self._sample, collate=self._collate)

    def _sample(self, columns: Mapping[str, Tensor], size: int, generator: torch.Generator) -> Any:
        instances = self.settings.instances
        return identity_batches(columns["label"].tolist(), size // instances, instances, generator)

    def _collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        s, images = self.settings, batch["image"]
        looks = s.model_dump(include={"flip", "pad", "gray_patch", "erase"})
        drawn: Batch = {**batch, "image": augment(images, generator, fill=s.black, **looks)}
        if s.parts:
            grid = (images.shape[2] // s.patch, images.shape[3] // s.patch)
            drawn["rectangles"] = draw_rectangles(grid, generator)
        return drawn

    # local training

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        return faster_biases(networks, self.settings.bias_lr)

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Linear warm-up, then a cosine down to a floor; changes once a round, as the release does once an epoch."""
        s = self.settings
        if step.round < s.warmup_rounds:
            factor = s.warmup_start + (1 - s.warmup_start) * step.round / s.warmup_rounds
        else:
            length = s.cosine_rounds or step.total_steps // step.per_round
            factor = cosine(min(1.0, step.round / length), 1, 1.0, s.lr_floor)
        return {"lr": group["lr"] * factor}

    def fit(self, ctx: FitContext) -> None:
        count = len(ctx.data["label"])
        columns = {**ctx.data, "row": torch.arange(count, device=ctx.device)}
        ctx.scratch["identities"] = torch.unique(ctx.data["label"])
        if self.settings.uses_bank:
            bank = ctx.scratch["bank"] = self._bank(ctx, columns)
        ctx.train(columns)
        if self.settings.uses_bank and self.settings.bank == "keep":
            ctx.state["bank"], ctx.state["known"] = bank.features, bank.known

    @torch.no_grad()
    def _bank(self, ctx: FitContext, columns: Mapping[str, Tensor]) -> MemoryBank:
        """The memory as it was kept, or after one pass over all images in training mode."""
        if "bank" in ctx.state:
            return MemoryBank(ctx.state["bank"], ctx.state["known"], columns["label"])
        backbone = ctx.networks["backbone"].train()
        bank = MemoryBank.empty(columns["label"], PARTS, self.settings.width)
        generator = ctx.generator("bank")
        for plain in ctx.iterate(columns, shuffle="bank"):
            batch = self._collate(plain, generator)
            with ctx.autocast():
                _, parts = backbone(batch["image"], batch["rectangles"])
            bank.update(batch["row"], parts, 1.0)
        ctx.log("bank_images", int(bank.known.sum()))
        return bank

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L_ID (with PSD its soft form) + L_tri + L_CSL; what PSD and CSL compare with is updated before."""
        s, identities = self.settings, step.scratch["identities"]
        g, parts = networks["backbone"](batch["image"], batch.get("rectangles"))
        logits = networks["classifier"](networks["neck"](g))[:, identities]
        labels = torch.searchsorted(identities, batch["label"])
        terms, soft = {}, None
        if s.uses_bank:
            bank: MemoryBank = step.scratch["bank"]
            bank.update(batch["row"], parts, s.bank_momentum)
            if int(bank.known.sum()) > 1:
                found = cross_id_similarity(
                    parts, bank.features, batch["row"], bank.known, s.neighbors, s.effective_scale
                )
                if s.csl:
                    terms["csl"] = s.csl_weight * found[0]
                owners = torch.searchsorted(identities, bank.identities[found[1]])
                q = neighbor_distribution(owners, len(identities))
                step.log("neighbor_probability", neighbor_probability(logits, labels, q))
                soft = soft_targets(labels, q, s.psd_share) if s.psd else None
            else:
                step.log("no_neighbors_single_image", 1.0)
        terms["identity"] = identity_loss(logits, labels, s.smoothing, soft, s.psd_weight)
        if s.triplet and len(torch.unique(labels)) > 1:
            terms["triplet"] = batch_hard_triplet(g, labels)
        elif s.triplet:
            step.log("no_triplet_single_identity", 1.0)
        return terms

    # evaluation and pictures

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """The cls feature g, by which the method retrieves, and the features of the parts as tokens."""
        g, parts = networks[part](batch["image"])
        return Features(g, parts if self.settings.parts else None)

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        """Retrieval among the client's own test images."""
        return search(extract(ctx.networks["backbone"], ctx.batches())).state()

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        metric = Retrieval()
        metric.merge(sums)
        return metric.compute()

    def evaluation_count(self, sums: Mapping[str, np.ndarray], samples: int) -> int:
        """Number of queries that count: there must be both a correct and a wrong image among the others."""
        return int(sums["queries"])

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        """Retrieval in the unseen domain, and the purity of the parts where the generator tells the bands' colors."""
        backbone = ctx.networks["backbone"]
        found = {name: extract(backbone, ctx.iterate(columns)) for name, columns in ctx.data.items()}
        values: dict[str, float] = {}
        if {"query", "gallery"} <= found.keys():
            values |= search(found["query"], found["gallery"]).compute()
        if "probe" in found:
            probe = found["probe"]
            tokens = probe["parts"] if self.settings.parts else probe["feature"][:, None]
            purity, chance = neighbor_purity(tokens, probe["label"], probe["colours"])
            values |= {"purity": purity, **({"purity_over_chance": purity / chance} if chance else {})}
        return values

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return {**ranked_lists(ctx), **attention(ctx)}


METHOD = PAT
