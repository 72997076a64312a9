"""The last stage: backbone and a linear classifier trained with labels (§3.6, after AST's recipe)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import ConfigError, DataError
from fedlab.method import Batch, EvaluationContext, ServerContext, Step, Task, network
from fedlab.methods.asit import views
from fedlab.methods.asit.networks import Tagger, Teacher
from fedlab.methods.asit.settings import ASiTSettings
from fedlab.metrics import Classification, TagPrecision
from fedlab.probes.classifiers import mean_average_precision

_LATE = "late/"


def check_labels(s: ASiTSettings, task: Task) -> None:
    """Refuse data whose labels the classifier cannot learn.

    Raises:
        DataError: the clients' clips have no labels.
        ConfigError: a loss for one label where clips have several.
    """
    if not {"label", "tags"} & task.columns.keys():
        fix = "label every clip of train and test, or set method.finetune_rounds to 0"
        raise DataError("data.source", "no labels", "labeled clips to fine-tune on", fix)
    if s.finetune_loss == "ce" and "tags" in task.columns:
        raise ConfigError("method.finetune_loss", "ce", "bce or auto where clips may have several labels")


def take_over(networks: nn.ModuleDict, s: ASiTSettings) -> None:
    """Copy the pre-trained backbone into the tagger."""
    pretrained = network(networks, s.finetune_from, Teacher)
    network(networks, "tagger", Tagger).backbone.load_state_dict(pretrained.backbone.state_dict())


def schedule(s: ASiTSettings, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
    """The learning rate, lowered by a factor every few rounds; a round counts as an epoch."""
    done = step.round - int(step.plan["pretraining"]) - 1
    steps = 0 if done < s.finetune_decay_from else 1 + (done - s.finetune_decay_from) // s.finetune_decay_every
    return {"lr": group["lr"] * s.finetune_decay**steps}


def loss(s: ASiTSettings, networks: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy if clips have one label, binary cross-entropy if they have several, on mixed and masked clips."""
    x = networks["normalizer"](batch["fbank"]) * batch["keep"]
    logits = networks["tagger"](x).float()
    y = _targets(batch, logits.shape[1])
    mixed = batch["share"] * y + (1 - batch["share"]) * y[batch["partner"]]
    if s.finetune_loss == "ce" or (s.finetune_loss == "auto" and "tags" not in batch):
        return {"ce": F.cross_entropy(logits, mixed)}
    return {"bce": F.binary_cross_entropy_with_logits(logits, mixed)}


def _targets(batch: Batch, num_classes: int) -> Tensor:
    return batch["tags"].float() if "tags" in batch else F.one_hot(batch["label"], num_classes).float()


def average_late(ctx: ServerContext, s: ASiTSettings) -> None:
    """Add up the weights of the last rounds; the final weights are their mean (AST averages late checkpoints)."""
    if not s.finetune_average or ctx.round <= ctx.rounds - s.finetune_average:
        return
    for name, value in ctx.networks["tagger"].state_dict().items():
        held = ctx.private.get(_LATE + name)
        ctx.private[_LATE + name] = value.clone() if held is None else held + value
        if ctx.round == ctx.rounds:
            value.copy_(ctx.private[_LATE + name] / s.finetune_average)


def predict(s: ASiTSettings, networks: nn.ModuleDict, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (n, K), the mean over `windows` evenly spaced parts of a clip."""
    parts = views.fixed_windows(s, batch, s.finetune_window, s.windows)
    return torch.stack([networks["tagger"](networks["normalizer"](part)).float() for part in parts]).mean(0)


def evaluate(ctx: EvaluationContext, s: ASiTSettings) -> Mapping[str, np.ndarray]:
    """The confusion matrix if clips have one label; otherwise binned precision and recall, which merge by addition."""
    if "tags" not in ctx.data:
        return ctx.classification(lambda batch: predict(s, ctx.networks, batch))
    metric = TagPrecision(ctx.task.num_classes)
    for batch in ctx.batches():
        with ctx.autocast():
            logits = predict(s, ctx.networks, batch)
        metric.update(logits, batch["tags"])
    return metric.state()


def values(sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
    """Accuracy and similar metrics, or mean average precision."""
    metric: Any = Classification(task.num_classes) if "confusion" in sums else TagPrecision(task.num_classes)
    metric.merge(sums)
    return {name: value for name, value in metric.compute().items() if isinstance(value, float)}


@torch.no_grad()
def test(ctx: ServerContext, s: ASiTSettings) -> dict[str, float]:
    """The tagger on the server's test clips; mean average precision is exact here."""
    ctx.networks.eval()
    parts = [(predict(s, ctx.networks, batch), batch) for batch in ctx.iterate(ctx.data["test"], ctx.batch_size)]
    logits = torch.cat([part for part, _ in parts])
    if "tags" in ctx.data["test"]:
        tags = torch.cat([batch["tags"] for _, batch in parts])
        return {"finetune_map": mean_average_precision(logits.numpy(force=True), tags.numpy(force=True))}
    labels = torch.cat([batch["label"] for _, batch in parts])
    return {"finetune_accuracy": float((logits.argmax(1) == labels).float().mean())}
