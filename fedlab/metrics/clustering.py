"""Clusters that are compared with classes, from one table of counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedlab.metrics.segmentation import Segmentation


class Contingency:
    """How often positions of each cluster are of each class, and the assignment of clusters to classes that fits best.

    Counts are integers and add up over clients. The assignment is made of the sum, so that all clients share it.

    Args:
        clusters: K.
        classes: C.
    """

    def __init__(self, clusters: int, classes: int) -> None:
        self.table = np.zeros((clusters, classes), np.int64)

    def update(self, clusters: np.ndarray, labels: np.ndarray) -> None:
        """Add positions.

        Args:
            clusters: integers from 0 to K − 1, of any shape.
            labels: integers from 0 to C − 1, of the same shape; negative is unlabeled and counts nowhere.
        """
        known = labels >= 0
        np.add.at(self.table, (clusters[known], labels[known]), 1)

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``contingency`` (K, C) int64."""
        return {"contingency": self.table.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self.table += state["contingency"].astype(np.int64)

    def classes_of(self) -> np.ndarray:
        """The class of each cluster, (K,), by the Hungarian algorithm; −1 for clusters that are left over.

        Every class gets one cluster at most, and every cluster one class at most, so that the number of positions that
        are right is as large as can be.
        """
        from scipy.optimize import linear_sum_assignment

        clusters, classes = linear_sum_assignment(self.table, maximize=True)
        found = np.full(len(self.table), -1)
        found[clusters] = classes
        return found

    def compute(self) -> dict[str, float]:
        """``miou``, ``miou_present`` and ``pixel_accuracy`` of `Segmentation`; a cluster without a class is of
        none. Empty without positions.
        """
        of, classes = self.classes_of(), self.table.shape[1]
        confusion = np.zeros((classes, classes + 1), np.int64)
        for cluster, found in enumerate(of):
            confusion[:, found] += self.table[cluster]  # −1 is the last column, "none of the classes"
        metric = Segmentation(classes)
        metric.merge({"confusion": confusion})
        return metric.compute()
