"""FedProto: clients exchange the mean features of each class, and no weights, so that their models may differ.

Tan, Long, Liu, Zhou, Lu, Jiang and Zhang, "FedProto: Federated Prototype Learning across Heterogeneous Clients",
AAAI 2022, arXiv 2105.00243. Symbols: f the features of a client's model, C_j the prototype of class j, λ the weight of
the distance to the prototypes.

The algorithm, in the order in which it runs, and the hook that does each line::

    every round, every client:                                                       fit
        for every batch:  z ← f(x)                                                   loss
            step on CE(head(z), y) + λ · mean squared distance of z from C_y         loss
        own C_j ← mean of f(x) over its samples of class j                           client_result
    server: C_j ← mean of the clients' C_j over those that hold class j              server_update
    evaluation: with the client's own head, or by the nearest prototype              evaluate
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.client_models import build_models, role_of
from fedlab.config import ComponentField, Section
from fedlab.errors import ConfigError
from fedlab.method import Batch, EvaluationContext, FitContext, Group, Method, Plan, ServerContext, Step, Task
from fedlab.methods.fedproto.prototypes import (
    class_means,
    mean_prototypes,
    nearest_prototype_logits,
    prototype_distance,
)
from fedlab.models import check_features, feature_classifier

PROTOTYPES, KNOWN, CLASSES, MEANS = "prototypes", "known", "classes", "means"
_ROLE = "role"


class FedProtoSettings(Section):
    """Settings; the default of λ is that of the authors' command line."""

    lam: float = Field(default=1.0, ge=0, description="weight of the distance to the prototypes, λ")
    models: tuple[ComponentField, ...] = Field(
        default=(),
        description="models of the clients, in turn: client i has number i modulo their count; their features must "
        "have the same length; default: every client has the run's model",
    )
    predict: Literal["head", "prototypes"] = Field(
        default="head",
        description="head: a client predicts with its own head; prototypes: the class of the nearest prototype, of "
        "those that it received in its last round",
    )


class FedProto(Method[FedProtoSettings]):
    """Federated prototypes. All weights stay on the clients; the server keeps one prototype for each class."""

    title = "FedProto"
    paper = "Tan et al. 2022, arXiv 2105.00243"
    learns_from = "labels, and the mean features of each class over all clients"
    augments = True

    Settings = FedProtoSettings

    def check(self, config: Any) -> list[str]:
        s, rounds = self.settings, config.federation.rounds
        warnings = {
            "method.lam = 0: the clients learn nothing of each other": s.lam == 0,
            "federation.rounds = 1: there are no prototypes before the second round": rounds == 1 and s.lam > 0,
        }
        return [text for text, holds in warnings.items() if holds]

    def build(self, task: Task) -> dict[str, nn.Module]:
        built = build_models(task, self.settings.models)
        names = [model.name for model in self.settings.models] or [task.model_name]
        for name, model in zip(names, built.values(), strict=True):
            check_features(model, name)
        widths = [feature_classifier(model).feature_dim for model in built.values()]
        if len(set(widths)) > 1:
            told = {f"{name} {place}": width for place, (name, width) in enumerate(zip(names, widths, strict=True))}
            expected = "models whose features have the same length, because prototypes are averaged"
            raise ConfigError("method.models", told, expected, "change their width or depth")
        return built

    def plan(self, round: int, rounds: int) -> Plan:
        """Rounds before and after there are prototypes, so that both kinds are tried before a run."""
        return {"prototypes": round > 1}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """All weights stay; prototypes are results of the clients and a shared tensor of the server."""
        return (Group("models", mode="local"),)

    def fit(self, ctx: FitContext) -> None:
        ctx.scratch[_ROLE] = role_of(ctx.client, self.settings.models)
        if self.settings.predict == "prototypes" and PROTOTYPES in ctx.shared:
            ctx.state[PROTOTYPES], ctx.state[KNOWN] = ctx.shared[PROTOTYPES], ctx.shared[KNOWN]
        ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """CE + λ · distance to the prototypes; no distance before there are prototypes."""
        model, labels = feature_classifier(networks[step.scratch[_ROLE]]), batch["label"]
        z = model.features(batch["image"])
        terms = {"ce": F.cross_entropy(model.head(z), labels)}
        if self.settings.lam and PROTOTYPES in step.shared:
            distance = prototype_distance(z, labels, step.shared[PROTOTYPES], step.shared[KNOWN])
            terms["distance"] = self.settings.lam * distance
        return terms

    @torch.no_grad()
    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        """The client's own prototypes: ``classes`` (c,), those that it holds, and ``means`` (c, d)."""
        if not len(ctx.data["label"]):
            return {}
        model = ctx.networks[ctx.scratch[_ROLE]].eval()
        features = ctx.computed(ctx.data, lambda batch: feature_classifier(model).features(batch["image"]).float())
        classes, means = class_means(features, ctx.data["label"])
        return {CLASSES: classes, MEANS: means}

    def server_update(self, ctx: ServerContext) -> None:
        """Average the prototypes; a class that no client of this round holds keeps its earlier prototype."""
        sent = [(found[CLASSES], found[MEANS]) for found in ctx.results.values() if CLASSES in found]
        if not sent:
            return
        means, known = mean_prototypes(sent, ctx.task.num_classes)
        if PROTOTYPES in ctx.shared:
            means = torch.where(known[:, None], means, ctx.shared[PROTOTYPES])
            known = known | ctx.shared[KNOWN]
        ctx.shared[PROTOTYPES], ctx.shared[KNOWN] = means, known

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Logits of the first of the clients' models."""
        logits: Tensor = next(iter(networks.values()))(batch["image"])
        return logits

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        """Classification by the client's own model, or by the prototypes that it has received."""
        model = ctx.networks[role_of(ctx.client, self.settings.models)]
        if self.settings.predict == "head" or PROTOTYPES not in ctx.state:
            return ctx.classification(lambda batch: model(batch["image"]))
        prototypes, known = ctx.state[PROTOTYPES], ctx.state[KNOWN]
        features = feature_classifier(model).features
        return ctx.classification(
            lambda batch: nearest_prototype_logits(features(batch["image"]).float(), prototypes, known)
        )


METHOD = FedProto
