"""Class-agnostic average precision and recall of masks, from counts that add up over clients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

IOUS = np.arange(10) * 0.05 + 0.5
"""The IoU from which on a mask is found, as COCO has them: 0.50, 0.55 … 0.95."""
VOID = -1
_BINS = 1000  # of scores on [0, 1]
_POINTS = np.linspace(0, 1, 101)  # recalls at which precision is read


def objects_of(instances: np.ndarray) -> np.ndarray:
    """The objects of one image as masks (m, h, w), in the order of their numbers.

    Args:
        instances: (h, w) numbers of objects, 0 for background and −1 for void.
    """
    numbers = np.unique(instances[instances > 0])
    masks: np.ndarray = instances[None] == numbers[:, None, None]
    return masks


def ious(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Intersection over union of every mask with every true one, (q, m) float64; 0 where both are empty.

    Args:
        masks: (q, …) truth values.
        truths: (m, …) truth values, of the same size.
    """
    a, b = (v.reshape(len(v), math.prod(v.shape[1:])).astype(np.float64) for v in (masks, truths))
    common = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - common
    result: np.ndarray = common / np.maximum(union, 1)
    return result


class MaskAP:
    """AP and AR of scored masks, whatever their class, as COCO defines them.

    In each image, masks are taken by falling score, and each finds the free object with the highest IoU, if that is at
    least the threshold. Over all images, precision is made not to rise with recall and is read at 101 recalls; AP is
    its mean over these and over the ten IoUs. Pixels that are void in the truth belong to no mask.

    Scores are counted in 1000 bins on [0, 1], so that counts of several clients can be added; masks of one bin count as
    having the same score. That is the only difference to COCO's evaluation.

    Args:
        most: largest number of masks of an image, those with the highest scores (AR@100).

    Source: Lin et al. 2014, arXiv 1405.0312, and the code of ``pycocotools``.
    """

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self._hits = np.zeros((len(IOUS), _BINS), np.int64)
        self._found = np.zeros(_BINS, np.int64)
        self._objects = np.zeros(1, np.int64)

    def update(self, masks: np.ndarray, scores: np.ndarray, instances: np.ndarray) -> None:
        """Add an image.

        Args:
            masks: (q, h, w) truth values.
            scores: (q,) in [0, 1].
            instances: (h, w) numbers of the objects, 0 for background and −1 for void.
        """
        seen = masks & (instances != VOID)
        order = np.argsort(-scores, kind="stable")
        order = order[seen[order].any(axis=(1, 2))][: self.most]
        truths = objects_of(instances)
        self._objects += len(truths)
        bins = np.minimum((scores[order] * _BINS).astype(np.int64), _BINS - 1)
        np.add.at(self._found, bins, 1)
        overlap = ious(seen[order], truths)
        for row, threshold in enumerate(IOUS):
            np.add.at(self._hits[row], bins[_matched(overlap, threshold)], 1)

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition, all int64."""
        return {"hits": self._hits.copy(), "found": self._found.copy(), "objects": self._objects.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self._hits += state["hits"].astype(np.int64)
        self._found += state["found"].astype(np.int64)
        self._objects += state["objects"].astype(np.int64)

    def compute(self) -> dict[str, float]:
        """``ap``, ``ap50`` (at IoU 0.5), ``ar`` (mean recall over the IoUs); none without objects."""
        objects = int(self._objects[0])
        if not objects:
            return {}
        curves = [self._precision(hits, objects) for hits in self._hits]
        recall = self._hits.sum(axis=1) / objects
        return {"ap": float(np.mean(curves)), "ap50": float(np.mean(curves[0])), "ar": float(recall.mean())}

    def _precision(self, hits: np.ndarray, objects: int) -> np.ndarray:
        """Precision at the 101 recalls, for one IoU."""
        # highest scores first
        right, all_ = hits[::-1].cumsum(), self._found[::-1].cumsum()
        recall, precision = right / objects, right / np.maximum(all_, 1)
        falling = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        result: np.ndarray = falling[np.searchsorted(recall, _POINTS - 1e-12, side="left")]
        return result


def _matched(overlap: np.ndarray, threshold: float) -> np.ndarray:
    """Which masks, (q,) by falling score, find an object of their own."""
    free = np.ones(overlap.shape[1], bool)
    hit = np.zeros(len(overlap), bool)
    for row, values in enumerate(overlap):
        candidates = np.where(free, values, -1.0)
        if free.any() and candidates.max() >= threshold - 1e-12:
            free[candidates.argmax()], hit[row] = False, True
    return hit


class MaskRecall:
    """How many true regions a set of unscored masks covers: for each, the IoU with the mask that fits best."""

    def __init__(self) -> None:
        self._covered = np.zeros(len(IOUS), np.int64)
        self._regions = np.zeros(1, np.int64)

    def update(self, masks: np.ndarray, truths: np.ndarray) -> None:
        """Add an image.

        Args:
            masks: (q, h, w) truth values.
            truths: (m, h, w) truth values.
        """
        best = ious(masks, truths).max(axis=0, initial=0.0)
        self._covered += (best >= IOUS[:, None] - 1e-12).sum(axis=1)
        self._regions += len(truths)

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition, all int64."""
        return {"covered": self._covered.copy(), "regions": self._regions.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self._covered += state["covered"].astype(np.int64)
        self._regions += state["regions"].astype(np.int64)

    def compute(self) -> dict[str, float]:
        """``recall50``, the share covered at IoU 0.5, and ``recall``, its mean over the IoUs; none without regions."""
        regions = int(self._regions[0])
        if not regions:
            return {}
        shares = self._covered / regions
        return {"recall50": float(shares[0]), "recall": float(shares.mean())}
