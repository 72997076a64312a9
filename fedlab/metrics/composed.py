"""Composed retrieval: a reference image and a modifying text find a target image (FashionIQ, CIRR, CIRCO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

_GRID = 2.0**20


class ComposedRetrieval:
    """Recall@k, Recall@k within a group and mAP@k of any number of query sets.

    Sums are exact, so merging gives the same bits in any order: hits are counts, and average precisions are rounded to
    multiples of 2⁻²⁰ before they are added. Queries of several kinds, such as the categories of FashionIQ, are averaged
    by kind, and every kind counts the same. A query without any target among the ranked images is skipped and counted.

    Args:
        ranks: the k of Recall, which is the share of queries with a target among the first k images.
        group_ranks: the k of Recall among the images of the query's group.
        cutoffs: the k of mAP.
        kinds: number of kinds of queries.

    Source: protocols of FashionIQ (Wu et al. 2021), CIRR (Liu et al. 2021) and CIRCO (Baldrati et al. 2023), as in
    ``src/validate.py`` of ``miccunifi/SEARLE``.
    """

    def __init__(
        self,
        ranks: Sequence[int] = (1, 5, 10, 50),
        group_ranks: Sequence[int] = (1, 2, 3),
        cutoffs: Sequence[int] = (5, 10, 25, 50),
        kinds: int = 1,
    ) -> None:
        self.ranks, self.group_ranks, self.cutoffs, self.kinds = tuple(ranks), tuple(group_ranks), tuple(cutoffs), kinds
        self._sums = {
            "hits": np.zeros((kinds, len(self.ranks)), np.int64),
            "open": np.zeros(len(self.ranks), np.int64),
            "group_hits": np.zeros((kinds, len(self.group_ranks)), np.int64),
            "precision": np.zeros((kinds, len(self.cutoffs)), np.float64),
            "chance": np.zeros(kinds, np.float64),
            "queries": np.zeros(kinds, np.int64),
            "grouped": np.zeros(kinds, np.int64),
            "several": np.zeros((), np.int64),
            "skipped": np.zeros((), np.int64),
        }

    def update(
        self,
        similarity: Tensor,
        targets: Tensor,
        *,
        removed: Tensor | None = None,
        group: Tensor | None = None,
        kind: Tensor | None = None,
        gallery_kind: Tensor | None = None,
    ) -> None:
        """Add n queries, each of which ranks a gallery of m images, the most similar first.

        Args:
            similarity: (n, m).
            targets: images that answer a query, (n, T) numbers of gallery images; −1 stands for none.
            removed: images that are not ranked, such as the reference in CIRR, (n, R) in the same form.
            group: images of the query's group, (n, G) in the same form; a query without any has no group.
            kind: (n,) the query's kind, from 0.
            gallery_kind: (m,) the kind of each image; a query then ranks images of its own kind only.
        """
        targets, similarity = targets.detach().cpu(), similarity.detach().float().cpu()
        kinds = torch.zeros(len(similarity), dtype=torch.long) if kind is None else kind.cpu()
        ranked = torch.ones(similarity.shape, dtype=torch.bool)
        if removed is not None:
            ranked &= ~_chosen(removed.cpu(), similarity.shape[1])
        if gallery_kind is not None:
            ranked &= gallery_kind.cpu()[None] == kinds[:, None]
        right = _chosen(targets, similarity.shape[1]) & ranked
        order = similarity.masked_fill(~ranked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        found, counted = right.gather(1, order).numpy(), ranked.gather(1, order).numpy()
        within = None if group is None else _chosen(group.cpu(), similarity.shape[1]).gather(1, order).numpy()
        for row, k in enumerate(kinds.tolist()):
            relevant = found[row][counted[row]]
            members = relevant[:0] if within is None else relevant[within[row][counted[row]]]
            self._add(k, relevant, members)

    def _add(self, kind: int, relevant: np.ndarray, members: np.ndarray) -> None:
        """One query: whether each ranked image is a target, and the same of the images of its group alone."""
        count = int(relevant.sum())
        if not count:
            self._sums["skipped"] += 1
            return
        first = int(relevant.argmax())
        self._sums["hits"][kind] += first < np.array(self.ranks)
        self._sums["open"] += len(relevant) - count >= np.array(self.ranks)
        precisions = relevant * np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
        found = [precisions[:k].sum() / min(count, k) for k in self.cutoffs]
        self._sums["precision"][kind] += np.rint(np.array(found) * _GRID) / _GRID
        self._sums["chance"][kind] += np.rint(count / len(relevant) * _GRID) / _GRID
        self._sums["queries"][kind] += 1
        self._sums["several"] += count > 1
        if members.any():
            self._sums["grouped"][kind] += 1
            self._sums["group_hits"][kind] += int(members.argmax()) < np.array(self.group_ranks)

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition; ``open`` counts queries whose Recall@k might have been a miss."""
        return {name: values.copy() for name, values in self._sums.items()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state of the same ranks and kinds."""
        for name, values in self._sums.items():
            values += state[name].astype(values.dtype)

    @property
    def skipped(self) -> int:
        """Number of queries without a target among the ranked images."""
        return int(self._sums["skipped"])

    def compute(self, names: Sequence[str] = ()) -> dict[str, float]:
        """``recall@<k>`` as far as it can fail, ``recall@1_chance`` of a random order (if 1 is a rank),
        ``group_recall@<k>`` if there are groups, and ``map@<k>`` if queries have several targets.

        Args:
            names: names of the kinds; with them, ``recall@<k>_<name>`` is told of each kind, too.

        Returns:
            Means over the kinds of the means over their queries; empty if there are no queries.
        """
        queries, grouped = self._sums["queries"], self._sums["grouped"]
        if not queries.any():
            return {}
        values: dict[str, float] = {}
        for place, k in enumerate(self.ranks):
            if self._sums["open"][place]:
                by_kind = self._sums["hits"][:, place] / np.maximum(queries, 1)
                values[f"recall@{k}"] = _mean(by_kind, queries)
                told = [(name, number) for number, name in enumerate(names) if queries[number]]
                values |= {f"recall@{k}_{name}": float(by_kind[number]) for name, number in told}
        if 1 in self.ranks:
            values["recall@1_chance"] = _mean(self._sums["chance"] / np.maximum(queries, 1), queries)
        if grouped.any():
            for place, k in enumerate(self.group_ranks):
                by_kind = self._sums["group_hits"][:, place] / np.maximum(grouped, 1)
                values[f"group_recall@{k}"] = _mean(by_kind, grouped)
        if self._sums["several"]:
            for place, k in enumerate(self.cutoffs):
                values[f"map@{k}"] = _mean(self._sums["precision"][:, place] / np.maximum(queries, 1), queries)
        return values


def _chosen(numbers: Tensor, count: int) -> Tensor:
    """Numbers (n, T), −1 for none → whether each of `count` images is among them (n, count) bool."""
    found = torch.zeros(len(numbers), count + 1, dtype=torch.bool)
    return found.scatter(1, numbers.masked_fill(numbers < 0, count), True)[:, :count]


def _mean(by_kind: np.ndarray, queries: np.ndarray) -> float:
    """The mean over the kinds that have queries."""
    return float(by_kind[queries > 0].mean())
