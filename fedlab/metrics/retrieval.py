"""Retrieval of an identity across cameras: CMC and mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.metrics.chance import chance_precision

_GRID = 2.0**20
_CHUNK = 512  # queries compared with the gallery at once


class Retrieval:
    """CMC rank-k and mAP of any number of query sets, clients or workers.

    Sums are exact, so merging gives the same bits in any order: hits are counts, and each query's average precision is
    rounded to a multiple of 2⁻²⁰ before it is added.

    Results that cannot fail do not count: a query that can only find its own identity has average precision 1 in any
    order, and rank k is a hit in any order where fewer than k images are wrong.

    Args:
        ranks: the k of CMC.

    Source: Zheng et al. 2015, "Scalable Person Re-identification: A Benchmark" (Market-1501's protocol).
    """

    def __init__(self, ranks: Sequence[int] = (1, 5, 10)) -> None:
        self.ranks = tuple(ranks)
        self._hits = np.zeros(len(self.ranks), dtype=np.int64)
        self._open = np.zeros(len(self.ranks), dtype=np.int64)
        self._precision, self._chance = np.float64(0.0), np.float64(0.0)
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
        """Rank the gallery for every query by the distance of L2-normalized features.

        Gallery images of the query's identity and camera do not count. A query without any other image of its identity
        is skipped, and so is one without any image of another. Images of nobody (junk) must have been removed;
        distractors are identities that no query has.

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
        wrong = len(matches) - len(places)
        if not len(places) or not wrong:
            return
        precision = (np.arange(1, len(places) + 1) / places).mean()
        self._precision += np.float64(np.rint(precision * _GRID) / _GRID)
        self._chance += np.float64(np.rint(chance_precision(len(places), len(matches)) * _GRID) / _GRID)
        self._hits += places[0] <= np.array(self.ranks)
        self._open += wrong >= np.array(self.ranks)
        self._queries += 1

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``hits`` and ``open`` (hits that might have been misses), (ranks,) int64;
        ``precision`` and ``chance`` () float64; ``queries`` () int64.
        """
        return {
            "hits": self._hits.copy(),
            "open": self._open.copy(),
            "precision": np.asarray(self._precision),
            "chance": np.asarray(self._chance),
            "queries": np.asarray(self._queries, dtype=np.int64),
        }

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state of the same ranks."""
        self._hits += state["hits"].astype(np.int64)
        self._open += state["open"].astype(np.int64)
        self._precision += np.float64(state["precision"])
        self._chance += np.float64(state["chance"])
        self._queries += int(state["queries"])

    def compute(self) -> dict[str, float]:
        """``mAP``, ``mAP_chance`` (of a random order) and ``rank1``, ``rank5``, … as far as they can fail: means over
        the queries that count; empty where there are none.
        """
        if not self._queries:
            return {}
        ranks = zip(self.ranks, self._hits, self._open, strict=True)
        cmc = {f"rank{k}": float(hits / self._queries) for k, hits, open in ranks if open}
        means = {"mAP": self._precision, "mAP_chance": self._chance}
        return {**{name: float(total / self._queries) for name, total in means.items()}, **cmc}


def search(
    query: Mapping[str, Tensor], gallery: Mapping[str, Tensor] | None = None, ranks: Sequence[int] = (1, 5, 10)
) -> Retrieval:
    """Rank a gallery for every query, or all other samples of the query set if there is no gallery.

    If there are no cameras, every sample counts as taken by a camera of its own.

    Args:
        query: columns ``feature`` (n, d), ``label`` (n,) and, if there are cameras, ``camera`` (n,). Without columns
            there is no query.
        gallery: likewise; None searches the query set itself.
        ranks: the k of CMC.
    """
    metric, searched = Retrieval(ranks), query if gallery is None else gallery
    if not query:
        return metric
    first = 0 if gallery is None else len(query["label"])
    metric.update(
        query["feature"],
        query["label"],
        _cameras(query, 0),
        searched["feature"],
        searched["label"],
        _cameras(searched, first),
    )
    return metric


def _cameras(samples: Mapping[str, Tensor], first: int) -> Tensor:
    if "camera" in samples:
        return samples["camera"]
    return torch.arange(first, first + len(samples["label"]))


def ranking(query: Tensor, gallery: Tensor) -> Tensor:
    """Gallery indices (n, m) by ascending distance of L2-normalized features; equal ones in the gallery's order.

    Args:
        query: (n, d).
        gallery: (m, d).
    """
    targets = F.normalize(gallery.float(), dim=1)
    # of unit vectors the nearest are those of the largest product
    parts = [F.normalize(part.float(), dim=1) @ targets.T for part in torch.split(query, _CHUNK)]
    similarity = torch.cat(parts) if parts else query.new_empty(0, len(gallery))
    return similarity.argsort(dim=1, descending=True, stable=True).cpu()
