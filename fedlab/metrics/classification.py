"""Classification quality from one confusion matrix and one loss sum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_GRID = 2.0**20
MOST_CLASSES = 100
"""Whole confusion matrices are recorded up to so many classes; with more, only each class's samples and hits are."""


class Classification:
    """Accuracy, balanced accuracy, macro F1 and cross-entropy of any number of batches, clients or workers.

    All sums are exact, so merging gives the same bits in any order and grouping: counts are integers, and each
    sample's loss is rounded to a multiple of 2⁻²⁰ before it is added (exact up to a total of 2³³).

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._loss_sum = np.float64(0.0)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (n, K).
            labels: (n,) integers below K.

        Raises:
            ValueError: logits of another width, or labels outside 0…K−1.
        """
        k = self.num_classes
        if logits.ndim != 2 or logits.shape[1] != k:
            raise ValueError(f"logits have shape {tuple(logits.shape)}, expected (n, {k})")
        logits, labels = logits.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.int64)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < k:
            raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {k - 1}")
        cells = torch.bincount(labels * k + logits.argmax(dim=1), minlength=k * k)
        self._confusion += cells.reshape(k, k).numpy()
        losses = F.cross_entropy(logits, labels, reduction="none")
        self._loss_sum += np.float64(((losses * _GRID).round() / _GRID).sum())

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``confusion`` (K, K) int64, row = label, column = prediction; ``loss_sum``
        () float64; ``examples`` () int64.
        """
        return {
            "confusion": self._confusion.copy(),
            "loss_sum": np.asarray(self._loss_sum),
            "examples": np.asarray(self._confusion.sum()),
        }

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another metric's state.

        Raises:
            ValueError: a state of another number of classes, or one that no samples can give.
        """
        confusion = np.asarray(state["confusion"])
        if confusion.shape != self._confusion.shape:
            raise ValueError(f"confusion matrix of shape {confusion.shape}, expected {self._confusion.shape}")
        if confusion.dtype.kind not in "iu" or (confusion < 0).any() or state["examples"] != confusion.sum():
            raise ValueError("a confusion matrix that does not count the examples")
        self._confusion += confusion.astype(np.int64)
        self._loss_sum += np.float64(state["loss_sum"])

    def compute(self) -> dict[str, float]:
        """``accuracy``, ``balanced_accuracy`` (mean recall over the classes that occur), ``f1_macro`` (mean over the
        classes that occur or are predicted) and ``loss`` (mean cross-entropy, nats); empty without samples.
        """
        examples = int(self._confusion.sum())
        if not examples:
            return {}
        hits = np.diag(self._confusion)
        actual, predicted = self._confusion.sum(axis=1), self._confusion.sum(axis=0)
        occurs, counts = actual > 0, actual + predicted > 0
        return {
            "accuracy": float(hits.sum() / examples),
            "balanced_accuracy": float((hits[occurs] / actual[occurs]).mean()),
            "f1_macro": float((2 * hits[counts] / (actual + predicted)[counts]).mean()),
            "loss": float(self._loss_sum / examples),
        }


def confusion_in(sums: Mapping[str, np.ndarray], num_classes: int) -> np.ndarray | None:
    """The confusion matrix among the sums of an evaluation, (K, K) int64: row = label, column = prediction.

    Args:
        sums: statistics by name, such as `Classification.state` returns.
        num_classes: K.

    Returns:
        None if the sums hold none of K classes, as those of a segmentation do not.
    """
    found = np.asarray(sums.get("confusion", ()))
    if "examples" not in sums or found.shape != (num_classes, num_classes):
        return None
    return found.astype(np.int64)
