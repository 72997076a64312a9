"""A diagnostic (§3.10): a new model is trained on the global virtual images D̃_g alone and tested on every client."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from fedlab.method import EvaluationContext, Group, Plan, ServerContext, Task
from fedlab.metrics import Classification

ROLE = "virtual_only"
_PREFIX = f"{ROLE}/"


def group(plan: Plan) -> Group:
    """The exchange of the new model: it keeps its initial weights until the clients receive it in the last round."""
    return Group(ROLE, members=(ROLE,), mode="server" if plan.get("diagnose") else "frozen")


def train(ctx: ServerContext, images: Tensor, labels: Tensor, batch_size: int) -> None:
    """Train for as many epochs over D̃_g as a client makes over its own set, with the run's optimizer."""
    model = ctx.networks[ROLE].train().requires_grad_()
    optimizer = ctx.optimizer(model.parameters())
    epochs = ctx.rounds * ctx.training.local_epochs
    for batch in ctx.iterate({"image": images, "label": labels}, batch_size, epochs, shuffle=ROLE):
        ctx.step({f"{ROLE}_ce": F.cross_entropy(model(batch["image"]), batch["label"])}, optimizer)
    model.eval().requires_grad_(False)


def evaluate(ctx: EvaluationContext) -> dict[str, np.ndarray]:
    """Statistics of the new model on a client's test samples, in the last round."""
    if not ctx.plan.get("diagnose"):
        return {}
    sums = ctx.classification(lambda batch: ctx.networks[ROLE](batch["image"]))
    return {_PREFIX + name: value for name, value in sums.items()}


def values(sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
    """Metrics of the new model, from (merged) statistics."""
    own = {name.removeprefix(_PREFIX): value for name, value in sums.items() if name.startswith(_PREFIX)}
    if not own:
        return {}
    metric = Classification(task.num_classes)
    metric.merge(own)
    return {f"{ROLE}_{name}": value for name, value in metric.compute().items()}
