"""Panoptic quality of segments whose clusters get their classes only when all clients' counts are added."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

VOID = -1
_UNIT = 2**40  # of the sums of IoU, which are integers so that their order does not matter


class PanopticQuality:
    """PQ = SQ · RQ, where SQ is the mean IoU of matched segments and RQ = TP / (TP + ½ FP + ½ FN).

    A found and a true segment match if their IoU exceeds ½, of which there can be one pair at most for either. Which
    class a cluster stands for may be decided after counting, because matches are counted by cluster and class. A found
    segment that lies mostly on void is not counted, and void pixels belong to no segment.

    Args:
        clusters: K.
        classes: C.

    Source: Kirillov et al. 2019, arXiv 1801.00868.
    """

    def __init__(self, clusters: int, classes: int) -> None:
        self._matches = np.zeros((clusters, classes), np.int64)
        self._overlaps = np.zeros((clusters, classes), np.int64)
        self._found = np.zeros(clusters, np.int64)
        self._true = np.zeros(classes, np.int64)

    def update(self, segments: np.ndarray, clusters: np.ndarray, truths: np.ndarray, classes: np.ndarray) -> None:
        """Add an image.

        Args:
            segments: (h, w) numbers of the found segments from 0 to q − 1; −1 is none.
            clusters: (q,) their clusters.
            truths: (h, w) numbers of the true segments from 0 to m − 1; −1 is void.
            classes: (m,) their classes.
        """
        q, m = len(clusters), len(classes)
        # one more row and column for what belongs to no segment
        cells = np.bincount(
            (segments.ravel() % (q + 1)) * (m + 1) + truths.ravel() % (m + 1), minlength=(q + 1) * (m + 1)
        )
        common = cells.reshape(q + 1, m + 1)
        known, sizes = common[:, :m], common[:, :m].sum(axis=0)
        areas = known.sum(axis=1)[:q]
        counted = (areas > 0) & (2 * areas >= common[:q].sum(axis=1))
        overlap = known[:q] / np.maximum(areas[:, None] + sizes - known[:q], 1)
        rows, columns = np.nonzero((overlap > 0.5) & counted[:, None])
        places = clusters[rows], classes[columns]
        np.add.at(self._matches, places, 1)
        np.add.at(self._overlaps, places, np.rint(overlap[rows, columns] * _UNIT).astype(np.int64))
        np.add.at(self._found, clusters[counted], 1)
        np.add.at(self._true, classes[sizes > 0], 1)

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition, all int64."""
        return {
            "matches": self._matches.copy(), "overlaps": self._overlaps.copy(),
            "segments": self._found.copy(), "true_segments": self._true.copy(),
        }  # fmt: skip

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self._matches += state["matches"].astype(np.int64)
        self._overlaps += state["overlaps"].astype(np.int64)
        self._found += state["segments"].astype(np.int64)
        self._true += state["true_segments"].astype(np.int64)

    def compute(self, classes_of: np.ndarray) -> dict[str, float]:
        """``pq``, ``sq`` and ``rq``, means over the classes that occur among true or found segments; none without any.

        Args:
            classes_of: (K,) the class of each cluster; segments of clusters with −1 are not counted.
        """
        of = [classes_of == c for c in range(len(self._true))]
        hits = np.array([self._matches[rows, c].sum() for c, rows in enumerate(of)], np.float64)
        quality = np.array([self._overlaps[rows, c].sum() for c, rows in enumerate(of)]) / _UNIT
        found = np.array([self._found[rows].sum() for rows in of])
        present = found + self._true > 0
        if not present.any():
            return {}
        sq = (quality / np.maximum(hits, 1))[present]
        rq = (2 * hits / np.maximum(found + self._true, 1))[present]
        return {"pq": float((sq * rq).mean()), "sq": float(sq.mean()), "rq": float(rq.mean())}
