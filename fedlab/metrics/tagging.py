"""Mean average precision for samples with several labels, from counts that can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab.metrics.sums import SumMetrics

_THRESHOLDS = 401
_FURTHEST = 20.0  # logits


class TagPrecision:
    """Binned mean average precision (``map``) of any number of batches, clients or workers.

    Exact average precision needs every sample's score in one place. Counts at 401 thresholds merge by addition instead;
    scores that share a bin count as tied. Thresholds are the cubes of an even grid, from −20 to 20 in logits: bins are
    0.1 wide where a trained model's scores are and far narrower around 0, where an untrained one's crowd.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        from torchmetrics.classification import MultilabelAveragePrecision

        grid = torch.linspace(-1, 1, _THRESHOLDS, dtype=torch.float64)
        thresholds = (_FURTHEST * grid**3).sigmoid()
        self.num_classes = num_classes
        self._metric = SumMetrics(
            {"map": MultilabelAveragePrecision(num_classes, average="none", thresholds=thresholds)}
        )
        self._positives = np.zeros(num_classes, np.int64)
        self._examples = 0

    def update(self, logits: Tensor, tags: Tensor) -> None:
        """Add a batch of logits (n, K) and truth values (n, K)."""
        tags = tags.to(logits.device).long()
        self._metric.update(logits.double().sigmoid(), tags)
        self._positives += tags.sum(0).cpu().numpy()
        self._examples += len(tags)

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition; ``positives`` (K,) and ``examples`` () among them."""
        return {**self._metric.state(), "positives": self._positives.copy(), "examples": np.asarray(self._examples)}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another metric's state."""
        self._metric.merge(state)
        self._positives += state["positives"]
        self._examples += int(state["examples"])

    def compute(self) -> dict[str, float]:
        """``map`` over the classes that occur; empty if none does."""
        occurs = self._positives > 0
        if not occurs.any():
            return {}
        found: Any = self._metric.compute()["map"]
        return {"map": float(np.asarray(found)[occurs].mean())}
