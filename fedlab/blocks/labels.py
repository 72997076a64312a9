"""Samples with one label each, in a column ``label``, or with several labels, as truth values in a column ``tags``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.errors import DataError
from fedlab.method import Batch, EvaluationContext, ServerContext, Task
from fedlab.metrics import Classification, TagPrecision
from fedlab.probes.classifiers import mean_average_precision

Predict = Callable[[Batch], Tensor]
"""Maps a batch of n samples to logits (n, K)."""


def targets_of(batch: Batch, num_classes: int) -> Tensor:
    """The labels as targets (n, K): truth values, or a one for the class of a sample and zeros elsewhere."""
    return batch["tags"].float() if "tags" in batch else F.one_hot(batch["label"], num_classes).float()


def labels_of(columns: Mapping[str, Tensor]) -> Tensor | None:
    """The tags (n, K) of samples, else their classes (n,), else None."""
    return columns.get("tags", columns.get("label"))


def server_labels(ctx: ServerContext, name: str) -> np.ndarray:
    """Classes (n,), or truth values (n, K), of a set that the server holds; in preflight those of one batch.

    Raises:
        DataError: the samples have no labels.
    """
    parts = [labels_of(batch) for batch in ctx.iterate(ctx.data[name], ctx.batch_size)]
    found = [part for part in parts if part is not None]
    if not found:
        raise DataError(f"server data {name!r}", "no labels", "labeled samples to probe with")
    labels: np.ndarray = torch.cat(found).numpy(force=True)
    return labels


def check_classes(ctx: ServerContext, name: str) -> None:
    """Refuse a set whose samples all have the same labels, because a probe would be right whatever the features.

    Raises:
        DataError: all samples have the same labels.
    """
    labels = labels_of(ctx.data[name])
    if labels is not None and len(torch.unique(labels, dim=0)) < 2:
        fix = "label samples of other classes too, or leave the set out"
        raise DataError(f"server data {name!r}", "samples of one class", "samples of at least two classes", fix)


def evaluate_labels(ctx: EvaluationContext, predict: Predict) -> Mapping[str, np.ndarray]:
    """Statistics that merge by addition: the confusion matrix, or binned precision and recall where there are tags."""
    if "tags" not in ctx.data:
        return ctx.classification(predict)
    metric = TagPrecision(ctx.task.num_classes)
    for batch in ctx.batches():
        with ctx.autocast():
            logits = predict(batch)
        metric.update(logits, batch["tags"])
    return metric.state()


def label_values(sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
    """Values from the statistics of `evaluate_labels`: accuracy and similar metrics, or mean average precision."""
    metric: Any = Classification(task.num_classes) if "confusion" in sums else TagPrecision(task.num_classes)
    metric.merge(sums)
    return {name: value for name, value in metric.compute().items() if isinstance(value, float)}


@torch.no_grad()
def measure_on_server(ctx: ServerContext, name: str, predict: Predict) -> dict[str, float]:
    """The ``accuracy`` on a set that the server holds, or ``map``, the exact mean average precision, if it has tags."""
    ctx.networks.eval()
    logits = torch.cat([predict(batch) for batch in ctx.iterate(ctx.data[name], ctx.batch_size)])
    labels = server_labels(ctx, name)
    if "tags" in ctx.data[name]:
        return {"map": mean_average_precision(logits.numpy(force=True), labels)}
    return {"accuracy": float((logits.argmax(1).cpu() == torch.from_numpy(labels)).float().mean())}
