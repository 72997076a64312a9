"""Retrieval of an identity across cameras: CMC and mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_GRID = 2.0**20
_CHUNK = 512  # queries compared with the gallery at once


class Retrieval:
    """CMC rank-k and mAP of any number of query sets, clients or workers.

    Sums are exact, so merging gives the same bits in any order: hits are counts, and each query's average precision is
    rounded to a multiple of 2⁻²⁰ before it is added.

    Args:
        ranks: the k of CMC.

    Source: Zheng et al. 2015, "Scalable Person Re-identification: A Benchmark" (Market-1501's protocol).
    """

    def __init__(self, ranks: Sequence[int] = (1, 5, 10)) -> None:
        self.ranks = tuple(ranks)
        self._hits = np.zeros(len(self.ranks), dtype=np.int64)
        self._precision = np.float64(0.0)
        self._queries = 0

    def update(
        self,
        query: Tensor,
        query_ids: Tensor,
        query_cameras: Tensor,
        gallery: Tensor,
        gallery_ids: Tensor,
        gallery_cameras: Tensor,
    ) -> None:
        """Rank the gallery for every query by the distance of L2-normalised features.

        Gallery images of the query's identity and camera do not count. A query without any other image of its identity
        is skipped. Images of nobody (junk) must have been removed; distractors are identities that no query has.

        Args:
            query: features (n, d).
            query_ids: (n,) integers.
            query_cameras: (n,) integers.
            gallery: features (m, d).
            gallery_ids: (m,).
            gallery_cameras: (m,).
        """
        ids, cameras = gallery_ids.cpu(), gallery_cameras.cpu()
        found = ranking(query, gallery)
        for order, identity, camera in zip(found, query_ids.tolist(), query_cameras.tolist(), strict=True):
            match = ids[order] == identity
            counts = ~(match & (cameras[order] == camera))
            self._add(match[counts].numpy())

    def _add(self, matches: np.ndarray) -> None:
        """One query: whether each image of its ranked gallery shows its identity."""
        places = np.flatnonzero(matches) + 1
        if not len(places):
            return
        precision = (np.arange(1, len(places) + 1) / places).mean()
        self._precision += np.float64(np.rint(precision * _GRID) / _GRID)
        self._hits += places[0] <= np.array(self.ranks)
        self._queries += 1

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``hits`` (ranks,) int64, ``precision`` () float64, ``queries`` () int64."""
        return {
            "hits": self._hits.copy(),
            "precision": np.asarray(self._precision),
            "queries": np.asarray(self._queries, dtype=np.int64),
        }

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state of the same ranks."""
        self._hits += state["hits"].astype(np.int64)
        self._precision += np.float64(state["precision"])
        self._queries += int(state["queries"])

    def compute(self) -> dict[str, float]:
        """``mAP`` and ``rank1``, ``rank5``, …: means over the queries that count; empty where there are none."""
        if not self._queries:
            return {}
        cmc = {f"rank{k}": float(hits / self._queries) for k, hits in zip(self.ranks, self._hits, strict=True)}
        return {"mAP": float(self._precision / self._queries), **cmc}


def ranking(query: Tensor, gallery: Tensor) -> Tensor:
    """Gallery indices (n, m) by ascending distance of L2-normalised features; equal ones in the gallery's order.

    Args:
        query: (n, d).
        gallery: (m, d).
    """
    targets = F.normalize(gallery.float(), dim=1)
    # of unit vectors the nearest are those of the largest product
    parts = [F.normalize(part.float(), dim=1) @ targets.T for part in torch.split(query, _CHUNK)]
    similarity = torch.cat(parts) if parts else query.new_empty(0, len(gallery))
    return similarity.argsort(dim=1, descending=True, stable=True).cpu()
