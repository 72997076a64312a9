"""Ditto: besides the global model, every client trains a personal model that is held close to the global one.

Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv 2012.04221. Symbols: w the global model, v_k the personal model of client k, F_k its loss, λ the weight of the
proximal term.

The algorithm (the paper's algorithm 1), in the order in which it runs, and the hook that does each line::

    every round, every client k:                                                    fit
        w ← the received model; v_k ← its own personal model                        exchange
        for every batch:
            w ← w − η ∇F_k(w)                                                       loss (ce)
            v_k ← v_k − η (∇F_k(v_k) + λ (v_k − received w))                        loss (personal_ce, proximal)
        keep v_k                                                                    exchange
    server: average w                                                               exchange
    evaluation: with v_k                                                            predict
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import Section
from fedlab.method import Batch, FitContext, Group, Method, Plan, Step, Task

_RECEIVED = "received"


class DittoSettings(Section):
    """Settings."""

    lam: float = Field(
        default=1.0,
        ge=0,
        description="weight λ of the proximal term; 0 trains a personal model that knows nothing of the others, and "
        "the larger it is, the closer the personal model stays to the global one",
    )


class Ditto(Method[DittoSettings]):
    """Personal models with a proximal term. The global model is trained and averaged as in FedAvg.

    One batch serves both models, as in the authors' code. Their losses share no parameter, so one backward pass of the
    sum gives each model its own gradient.
    """

    title = "Ditto"
    paper = "Li et al. 2021, arXiv 2012.04221"
    learns_from = "labels, with a personal model held close to the global one"
    feature_parts = ("personal", "model")
    augments = True

    Settings = DittoSettings

    def check(self, config: Any) -> list[str]:
        together = config.training.clip_norm is not None and config.training.clip == "global"
        clipped = (
            "training.clip_norm limits the gradients of both models together; training.clip = tensor keeps them apart"
        )
        warnings = {
            "method.lam = 0: the personal models learn nothing of the other clients": self.settings.lam == 0,
            clipped: together,
        }
        return [text for text, holds in warnings.items() if holds]

    def build(self, task: Task) -> dict[str, nn.Module]:
        model = task.model()
        return {"model": model, "personal": copy.deepcopy(model)}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """The global model is averaged by numbers of samples; the personal one stays where it is."""
        return (Group("model", members=("model",)), Group("personal", members=("personal",), mode="local"))

    def fit(self, ctx: FitContext) -> None:
        model = ctx.networks["model"]
        ctx.scratch[_RECEIVED] = [p.detach().clone() for p in model.parameters()]
        ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """F_k(w), and F_k(v_k) + λ/2 ‖v_k − w‖² with w as received."""
        x, y, personal = batch["image"], batch["label"], networks["personal"]
        pairs = zip(personal.parameters(), step.scratch[_RECEIVED], strict=True)
        distance = torch.stack([(own - received).square().sum() for own, received in pairs]).sum()
        return {
            "ce": F.cross_entropy(networks["model"](x), y),
            "personal_ce": F.cross_entropy(personal(x), y),
            "proximal": self.settings.lam / 2 * distance,
        }

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Logits of the client's personal model."""
        logits: Tensor = networks["personal"](batch["image"])
        return logits


METHOD = Ditto
