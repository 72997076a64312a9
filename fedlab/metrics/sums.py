"""torchmetrics metrics as mergeable sums."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchmetrics import Metric


class SumMetrics:
    """Several torchmetrics metrics over the same predictions, exchanged as sums.

    Counts merge exactly; other sums are kept in float64, whose last bits depend on the order of addition.

    Args:
        metrics: by name; each must hold nothing but tensors reduced by summation: counts, confusion matrices, sums of
            errors; not lists of predictions (AUROC without bins), means or extremes.

    Raises:
        TypeError: a state that is not a sum.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        from torchmetrics.utilities import dim_zero_sum  # importing torchmetrics takes seconds

        self._metrics = {name: metric.clone() for name, metric in metrics.items()}
        for name, metric in self._metrics.items():
            metric.compute_with_cache = False  # a cached value would survive merge()
            for state, reduction in metric._reductions.items():
                if reduction is not dim_zero_sum or not isinstance(metric.metric_state[state], Tensor):
                    raise TypeError(
                        f"metric {name!r} ({type(metric).__name__}): state {state!r} is not merged by a sum"
                    )
            self._add(metric, {state: torch.zeros(()) for state in metric.metric_state})

    @staticmethod
    def _add(metric: Metric, sums: Mapping[str, Tensor]) -> None:
        for state, value in _tensors(metric).items():
            wide = torch.float64 if value.is_floating_point() else torch.int64
            setattr(metric, state, value.to(wide) + sums[state].to(value.device, wide))

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch, in the form the metrics expect."""
        for metric in self._metrics.values():
            metric.update(predictions, targets)

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition, keys ``<metric>.<state>``, float64 or int64."""
        return {
            f"{name}.{state}": value.cpu().numpy().copy()
            for name, metric in self._metrics.items()
            for state, value in _tensors(metric).items()
        }

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        for name, metric in self._metrics.items():
            self._add(metric, {key: torch.tensor(state[f"{name}.{key}"]) for key in metric.metric_state})

    def compute(self) -> dict[str, float | list[Any]]:
        """The metrics' values, arrays as nested lists."""
        with warnings.catch_warnings():
            # merged sums are as good as updates, which is all torchmetrics knows of
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric", category=UserWarning)
            return {name: _plain(metric.compute()) for name, metric in self._metrics.items()}


def _tensors(metric: Metric) -> dict[str, Tensor]:
    """The metric's states; `SumMetrics` accepts no lists."""
    return {name: value for name, value in metric.metric_state.items() if isinstance(value, Tensor)}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else [_plain(part) for part in value]
