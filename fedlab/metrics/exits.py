"""Where samples leave a network with early exits, how many of them are right there, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor


class ExitHistogram:
    """Counts of samples by the layer after which they left. All sums are of integers, so they merge exactly.

    A mean of the speed-ups of several clients is biased. So the speed-up is computed from the summed histogram.

    Args:
        layers: numbers of the layers after which there is an exit, from 1, in rising order.
        depth: L, number of layers, all of which a sample passes that leaves at no exit.
    """

    def __init__(self, layers: Sequence[int], depth: int) -> None:
        self.layers = (*layers, depth)
        self._left = np.zeros(len(self.layers), np.int64)
        self._right = np.zeros(len(self.layers), np.int64)
        self._macs = np.zeros(2, np.int64)

    def update(self, places: Tensor, right: Tensor, macs: Sequence[int] = (), whole: int = 0) -> None:
        """Add samples.

        Args:
            places: (n,) number of the exit of each sample, from 0; the number of exits for one that left at none.
            right: (n,) truth values, whether the prediction with which the sample left is right.
            macs: what a sample costs that leaves at each exit, and at last one that leaves at none, in operations;
                empty if this is not known.
            whole: what a sample costs in a network without exits.

        Raises:
            ValueError: a place that is none.
        """
        at = places.numpy(force=True).astype(np.int64)
        if len(at) and not 0 <= at.min() <= at.max() < len(self.layers):
            raise ValueError(f"places from {at.min()} to {at.max()}, expected 0 to {len(self.layers) - 1}")
        found = np.bincount(at, minlength=len(self.layers))
        self._left += found
        self._right += np.bincount(at[right.numpy(force=True)], minlength=len(self.layers))
        if macs:
            self._macs += np.array([int(found @ np.array(macs, np.int64)), len(at) * whole])

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition, int64: ``left`` and ``right`` (exits + 1,), ``macs`` (2,) spent and whole."""
        return {"left": self._left.copy(), "right": self._right.copy(), "macs": self._macs.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another histogram's state."""
        self._left = self._left + state["left"]
        self._right = self._right + state["right"]
        self._macs = self._macs + state["macs"]

    @property
    def accuracy(self) -> float:
        """Share of samples that left with the right prediction; 0 without samples."""
        return float(self._right.sum() / max(1, self._left.sum()))

    @property
    def speedup(self) -> float:
        """L over the mean layer, Σ L n / Σ ℓ n(ℓ); the heads' own work is not counted. 1 without samples."""
        passed = int(self._left @ np.array(self.layers, np.int64))
        return float(self.layers[-1] * self._left.sum() / passed) if passed else 1.0

    def compute(self) -> dict[str, float]:
        """The values by name; empty without samples.

        They are ``speedup``, ``mean_exit_layer``, ``left_at_<layer>``, which is the share of samples that left there,
        and, if costs are known, ``mean_macs`` of a sample and ``macs_speedup``, which is how many times as much a
        network without exits would spend.
        """
        count = int(self._left.sum())
        if not count:
            return {}
        found = {"speedup": self.speedup, "mean_exit_layer": self.layers[-1] / self.speedup}
        found |= {f"left_at_{layer}": float(n / count) for layer, n in zip(self.layers, self._left, strict=True)}
        spent, whole = self._macs.tolist()
        if spent:
            found |= {"mean_macs": spent / count, "macs_speedup": whole / spent}
        return found


class ExitCurve:
    """Accuracy and speed-up at several thresholds, by one histogram for each.

    Args:
        thresholds: the thresholds.
        layers: see `ExitHistogram`.
        depth: see `ExitHistogram`.
    """

    def __init__(self, thresholds: Sequence[float], layers: Sequence[int], depth: int) -> None:
        self.at = {threshold: ExitHistogram(layers, depth) for threshold in thresholds}

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: the histograms' ``left`` and ``right``, one row for each threshold."""
        held = [one.state() for one in self.at.values()]
        return {name: np.stack([state[name] for state in held]) for name in ("left", "right", "macs")} if held else {}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another curve's state, of the same thresholds."""
        for row, one in enumerate(self.at.values()):
            one.merge({name: values[row] for name, values in state.items()})

    def compute(self) -> dict[str, float]:
        """``accuracy@<threshold>`` and ``speedup@<threshold>``."""
        return {
            name: value
            for threshold, one in self.at.items()
            for name, value in ((f"accuracy@{threshold:g}", one.accuracy), (f"speedup@{threshold:g}", one.speedup))
        }
