"""FedRep: all clients learn one representation together, and each client its own head on it.

Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning",
ICML 2021, arXiv 2102.07078. Symbols: φ the representation, h_i the head of client i, f_i its loss, τ the number of
passes that update the head.

The algorithm (the paper's algorithm 1), in the order in which it runs, and the hook that does each line::

    every round, every client i:                                                    fit
        φ ← the received representation; h_i ← its own head                         exchange
        τ times, for every batch:  h_i ← h_i − α ∇_h f_i(h_i, φ)                    loss, φ fixed
        once, for every batch:     φ ← φ − α ∇_φ f_i(h_i, φ)                        loss, h_i fixed
        keep h_i                                                                    exchange
    server: average φ                                                               exchange
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import Positive, Section
from fedlab.method import Batch, FitContext, Group, Method, Plan, Step, Task
from fedlab.models import check_features, feature_classifier

_PART = "part"
_HEAD, _REPRESENTATION = "head", "representation"


class FedRepSettings(Section):
    """Settings."""

    head_passes: Positive = Field(
        default=9,
        description="passes of local training that update the head before one pass updates the representation, τ; each "
        "pass has training.local_epochs epochs, or training.local_steps steps",
    )


class FedRep(Method[FedRepSettings]):
    """Alternating local training of a private head and of a shared representation.

    The head is the model's ``head``, and the representation is everything else. What a pass does not update gets no
    gradient, so that momentum and weight decay leave it alone too.
    """

    title = "FedRep"
    paper = "Collins et al. 2021, arXiv 2102.07078"
    learns_from = "labels, with a head of their own on a shared representation"
    augments = True

    Settings = FedRepSettings

    def build(self, task: Task) -> dict[str, nn.Module]:
        model = task.model()
        check_features(model, task.model_name)
        return {"model": model}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """The representation is averaged by numbers of samples, as in the authors' code; the head stays."""
        return (
            Group("head", members=("model.head",), mode="local"),
            Group("representation", members=("model",)),
        )

    def fit(self, ctx: FitContext) -> None:
        for part, passes in ((_HEAD, self.settings.head_passes), (_REPRESENTATION, 1)):
            ctx.scratch[_PART] = part
            for _ in ctx.steps(passes):
                ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Cross-entropy, of which only the part of this pass gets a gradient; logged under the part's name."""
        part, head = step.scratch[_PART], networks["model"].get_submodule("head")
        z = feature_classifier(networks["model"]).features(batch["image"])
        if part == _HEAD:
            logits = head(z.detach())
        else:
            fixed: dict[str, Any] = {name: value.detach() for name, value in head.named_parameters()}
            logits = torch.func.functional_call(head, fixed, (z,))
        return {f"{part}_ce": F.cross_entropy(logits, batch["label"])}


METHOD = FedRep
