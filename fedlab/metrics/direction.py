"""Whether higher or lower values of a metric are better, and which metric is shown first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_FIRST = ("accuracy", "balanced_accuracy", "f1_macro")
_HIGH = {
    "accuracy", "ap", "ap50", "ar", "auroc", "cosine", "dice", "f1", "gain", "iou", "joined", "kappa", "map", "margin",
    "mcc", "miou", "pq", "precision", "psnr", "purity", "recall", "retention", "rq", "sensitivity", "specificity",
    "speedup", "sq", "ssim", "tpr",
}  # fmt: skip
_RANK = re.compile(r"rank\d+")  # share of queries answered rightly by then, of cumulative matching curves
_LOW = {
    "alarm", "ce", "distance", "eer", "error", "fid", "hter", "kid", "kl", "l1", "l2", "loss", "mae", "mse", "nll",
    "overlap", "perplexity", "rank", "rmse",
}  # fmt: skip
# what is said about a metric rather than measured: of two numbers none is better
_NEITHER = {"std", "minus", "strength", "attention"}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
_NUMBERED = re.compile(r"(?<![fl])\d")  # the numbers of F1, L1 and L2 belong to their names
_PROBE = "probe_"  # the scores of probes are called after the probe
AFTER_TRAINING = "personalized_"
"""Beginning of the names of metrics that clients have measured after local training on their own samples."""


def best_of(name: str) -> Any:
    """`max` or `min`, whichever is better for a metric; None if its name does not tell."""
    told, words = _told(name), set(name.lower().split("_"))
    return max if told is None and name.startswith(_PROBE) and not words & _NEITHER else told


def _told(name: str) -> Any:
    """What the words of a name tell; see `best_of`."""
    words = set(re.split(r"[_@\-]", name.lower()))
    if words & _NEITHER:
        return None
    if words & _LOW:
        return min
    return max if words & _HIGH or any(_RANK.fullmatch(word) for word in words) else None


def natural(name: str) -> list[str | float]:
    """A key that sorts names by the numbers in them: ``rank5`` before ``rank10``."""
    return [float(part) if place % 2 else part for place, part in enumerate(_NUMBER.split(name))]


def ranked(names: Iterable[str]) -> list[str]:
    """Metrics in the order to show them: accuracy, others for which more is better, then less, the rest, losses.

    The scores of probes are among the rest, behind what the method itself measures. Within each kind, names with a
    number, such as ``exit_4_accuracy``, come last, in the order of the number.
    """

    def rank(name: str) -> tuple[int, bool, list[str | float]]:
        if name in _FIRST:
            place = _FIRST.index(name)
        elif name.endswith("loss"):
            place = len(_FIRST) + 3
        else:
            place = len(_FIRST) + {max: 0, min: 1}.get(_told(name), 2)
        return place, bool(_NUMBERED.search(name)), natural(name)

    return sorted(set(names), key=rank)


def headline(names: Iterable[str]) -> str:
    """The metric to show first; "" if there is none."""
    return next(iter(ranked(names)), "")
