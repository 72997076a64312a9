"""Real or fake, live or attack: quality of a score for one class against another, judged by video."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_STEPS = 10_000
_FINE = 50  # further bins for each power of ten of the distance to 0, to 1/2 and to 1, below 1/10000
_DECADES = 8
_LOW_RATE = 0.01


def _edges() -> np.ndarray:
    """Lower edges of the bins: k / 10000 for k = 0 … 10000, and edges ever closer together near 0, 1/2 and 1.

    Trained models have scores near 0 and 1, and those of a model that has hardly begun to learn crowd around 1/2.
    """
    near = 10.0 ** -(4 + np.arange(1, _FINE * _DECADES + 1) / _FINE)
    # integers that are divided: k * 1e-4 would give 0.7000000000000001 for k = 7000
    even = np.arange(_STEPS + 1) / _STEPS
    edges: np.ndarray = np.unique(np.concatenate([even, near, 0.5 - near, 0.5 + near, 1 - near]))
    return edges


EDGES = _edges()
"""Scores s fall into the bin whose edges enclose them: EDGES[j] ≤ s < EDGES[j + 1]."""
_GRID = np.searchsorted(EDGES, np.arange(_STEPS + 1) / _STEPS)


def video_means(scores: np.ndarray, labels: np.ndarray, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean score and the label of each video, in the order of the videos' numbers.

    Args:
        scores: (n,) of frames.
        labels: (n,) of frames.
        videos: (n,) integers, the video of each frame.

    Raises:
        ValueError: frames of one video have different labels.
    """
    _, first, codes, counts = np.unique(videos, return_index=True, return_inverse=True, return_counts=True)
    if (labels != labels[first][codes]).any():
        raise ValueError("frames of one video have different labels")
    return np.bincount(codes, weights=scores, minlength=len(first)) / counts, labels[first]


class Verification:
    """AUC, equal error rate, half total error rate and others from counts that merge exactly over clients.

    Scores are counted in about 11,600 bins of [0, 1], at most 1/10000 wide and much narrower near 0, 1/2 and 1.
    Scores in one bin count as equal.

    Args:
        threshold: a threshold that was chosen on other samples, for `hter`; None if there is none.
    """

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold
        self._bins = np.zeros((2, len(EDGES)), np.int64)
        self._decided = np.zeros((2, 2), np.int64)
        self._right = np.zeros(2, np.int64)

    def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Add samples, which are videos if their frames have been averaged by `video_means`.

        Args:
            scores: (n,) in [0, 1], high for label 1.
            labels: (n,) integers: 1 is what is looked for, such as a real face, and 0 is everything else.

        Raises:
            ValueError: scores outside [0, 1] or NaN, or other labels.
        """
        if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
            raise ValueError(f"scores from {scores.min()} to {scores.max()}, expected probabilities")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("labels other than 0 and 1")
        places = np.searchsorted(EDGES, scores.astype(np.float64), side="right") - 1
        for label in (0, 1):
            mine = labels == label
            self._bins[label] += np.bincount(places[mine], minlength=len(EDGES))
            self._right[label] += int(((scores[mine] >= 0.5) == bool(label)).sum())
            if self.threshold is not None:
                accepted = int((scores[mine] >= self.threshold).sum())
                self._decided[label] += (int(mine.sum()) - accepted, accepted)

    def state(self) -> dict[str, np.ndarray]:
        """Counts to be merged by addition.

        ``bins`` (2, number of bins), row 1 of label 1; ``decided`` (2, 2), below and not below the threshold, by label;
        ``right`` (2,), on the right side of 1/2, by label.
        """
        return {"bins": self._bins.copy(), "decided": self._decided.copy(), "right": self._right.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self._bins += state["bins"]
        self._decided += state["decided"]
        self._right += state["right"]

    def equal_error_threshold(self) -> float | None:
        """The threshold among 0, 1/10000, …, 1 and 1.1 at which the two error rates are closest; the last of several.

        A score is accepted if it is at least the threshold. None if samples of either label are missing.

        Source: the code of FSFM (arXiv 2412.12032), as usual in face anti-spoofing.
        """
        rates = self._rates()
        if rates is None:
            return None
        distance = np.abs(rates[0][_GRID] - (1 - rates[1][_GRID]))
        # at 1.1 nothing is accepted: the distance of the error rates is 1
        best = int(np.flatnonzero(distance == distance.min())[-1])
        return 1.1 if distance.min() >= 1 else best / _STEPS

    def compute(self) -> dict[str, float]:
        """The figures; empty if samples of either label are missing.

        ``auroc``; ``eer``, the error rate where both are equal on the interpolated ROC curve; ``hter_at_test_eer``, the
        mean of both error rates at the threshold that `equal_error_threshold` chooses on these samples themselves,
        which flatters; ``hter``, the same at the given threshold, if there is one; ``tpr_at_fpr1``, the largest share
        of label 1 that is accepted while at most 1 % of label 0 are; ``accuracy`` and ``balanced_accuracy`` at 1/2.
        """
        rates = self._rates()
        chosen = self.equal_error_threshold()
        if rates is None or chosen is None:
            return {}
        fpr, tpr = rates
        totals = self._bins.sum(axis=1)
        values = {
            "auroc": float(np.sum((fpr[:-1] - fpr[1:]) * (tpr[:-1] + tpr[1:])) / 2),
            "eer": _equal_error_rate(fpr, tpr),
            "hter_at_test_eer": self._half_total(fpr, tpr, chosen),
            "tpr_at_fpr1": float(tpr[fpr <= _LOW_RATE].max()),
            "accuracy": float(self._right.sum() / totals.sum()),
            "balanced_accuracy": float((self._right / totals).mean()),
        }
        if self._decided.sum():
            false_accepted = self._decided[0, 1] / self._decided[0].sum()
            false_rejected = self._decided[1, 0] / self._decided[1].sum()
            values["hter"] = float((false_accepted + false_rejected) / 2)
        return values

    def _rates(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Shares of label 0 and of label 1 whose bin is at or above each edge, and last 0: nothing is accepted."""
        totals = self._bins.sum(axis=1)
        if not totals.all():
            return None
        above = self._bins[:, ::-1].cumsum(axis=1)[:, ::-1] / totals[:, None]
        fpr, tpr = np.concatenate([above, np.zeros((2, 1))], axis=1)
        return fpr, tpr

    @staticmethod
    def _half_total(fpr: np.ndarray, tpr: np.ndarray, threshold: float) -> float:
        place = len(EDGES) if threshold > 1 else _GRID[round(threshold * _STEPS)]
        return float((fpr[place] + 1 - tpr[place]) / 2)


def _equal_error_rate(fpr: np.ndarray, tpr: np.ndarray) -> float:
    """The x at which 1 − x − TPR(x) = 0 on the ROC curve, whose points are joined by straight lines.

    Args:
        fpr: falling from 1 to 0.
        tpr: likewise.
    """
    gap = 1 - fpr - tpr  # rises from −1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(fpr[before] + share * (fpr[after] - fpr[before]))
