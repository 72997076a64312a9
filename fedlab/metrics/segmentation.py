"""Segmentation quality from one confusion matrix of positions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class Segmentation:
    """Intersection over union and pixel accuracy of any number of batches, clients or workers.

    Counts are integers and classes that a client lacks add nothing, so the values of merged counts are those of all
    positions together; a mean of the clients' mIoU is not.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._confusion = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            predictions: (n, H, W) integers; K and above is "none of the classes": a miss of the true class, but no
                false hit of another.
            labels: (n, H, W) integers below K; negative is unlabeled and counts nowhere.

        Raises:
            ValueError: different shapes, or numbers out of range.
        """
        if predictions.shape != labels.shape:
            raise ValueError(f"predictions {tuple(predictions.shape)} of labels {tuple(labels.shape)}, expected alike")
        k, labeled = self.num_classes, labels >= 0
        truth, found = (values[labeled].detach().to("cpu", torch.int64) for values in (labels, predictions))
        if len(truth) and (int(truth.max()) >= k or int(found.min()) < 0):
            raise ValueError(
                f"labels up to {int(truth.max())} and predictions from {int(found.min())}, expected 0 to {k - 1}"
            )
        cells = torch.bincount(truth * (k + 1) + found.clamp(max=k), minlength=k * (k + 1))
        self._confusion += cells.reshape(k, k + 1).numpy()

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``confusion`` (K, K + 1) int64, row = label, column = prediction, the last
        one "none of the classes".
        """
        return {"confusion": self._confusion.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another metric's state.

        Raises:
            ValueError: a state of another number of classes.
        """
        confusion = np.asarray(state["confusion"])
        if confusion.shape != self._confusion.shape:
            raise ValueError(f"confusion matrix of shape {confusion.shape}, expected {self._confusion.shape}")
        self._confusion += confusion.astype(np.int64)

    def class_iou(self) -> np.ndarray:
        """(K,) hits over all positions of the class or taken for it; NaN where there is none."""
        hits = np.diag(self._confusion)
        union = self._confusion.sum(axis=1) + self._confusion[:, :-1].sum(axis=0) - hits
        result: np.ndarray = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
        return result

    def compute(self) -> dict[str, float]:
        """``miou`` (mean over all K classes; one that neither occurs nor is predicted counts 0, as on the official
        leader boards), ``miou_present`` (such classes skipped) and ``pixel_accuracy``; empty without positions.
        """
        positions = int(self._confusion.sum())
        if not positions:
            return {}
        iou = self.class_iou()
        return {
            "miou": float(np.nan_to_num(iou).mean()),
            "miou_present": float(np.nanmean(iou)),
            "pixel_accuracy": float(np.diag(self._confusion).sum() / positions),
        }
