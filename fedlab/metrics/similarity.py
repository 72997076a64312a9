"""How well the similarity of patch features tells what belongs to an object, without any training.

All counts are integers, so that merging does not depend on the order of samples, clients or workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.metrics.prompts import VOID, Grid, PromptedObject, prompted_objects, regions_of

Level = Literal["patch", "pixel"]
Prompt = Literal["innermost", "random"]
PROMPTS: tuple[Prompt, ...] = ("innermost", "random")
# denser near 1, where the similarities of an untrained network crowd
THRESHOLDS = 1 - 2 * np.linspace(1, 0, 401) ** 2
_UNIT = 2**40  # of the sums of IoU
_FINE = 2**30  # of the sums of similarities, of which there are more
_BINS, _COARSE = 4000, 100  # bins on [−1, 1] for the AUROC and for the overlap


class PromptSegmentation:
    """Segmentation by one prompt: everything whose similarity to the prompted patch exceeds a threshold t.

    S = f f_j for the L2-normalized features f of the patches and the patch j that holds the point; the prediction is
    S > t. The IoU of every object is kept for 401 values of t, so that t can be chosen afterwards, on other samples.

    Args:
        level: ``patch`` scores patches, of which those belong to the object that it covers by more than half;
            ``pixel`` enlarges S bilinearly to the size of the mask.
        points: number of random points of an object, over which its IoU is averaged.

    Source: Wu et al. 2023, arXiv 2308.11448, of which only the idea is published; the protocol is FedLab's.
    """

    def __init__(self, level: Level = "patch", points: int = 5) -> None:
        self.level, self.points = level, points
        self._sums = {name: np.zeros(len(THRESHOLDS), np.int64) for name in PROMPTS}
        self._oracle = np.zeros(len(PROMPTS), np.int64)
        self._counts = np.zeros(2, np.int64)  # objects, objects that are too small

    def update(self, tokens: Tensor, instances: Tensor, grid: Grid) -> None:
        """Add images.

        Args:
            tokens: (n, N, D) features of the patches, row by row, not normalized.
            instances: (n, h, w) numbers of objects, 0 for background and −1 for void, which is not scored.
            grid: (rows, columns) of the N patches; h and w are multiples of them.

        Raises:
            ValueError: the mask does not divide into the patches.
        """
        for features, mask in zip(unit(tokens), instances.numpy(force=True), strict=True):
            void = regions_of((mask == VOID)[None].astype(np.int64), grid)[0] == 1
            for thing in prompted_objects(mask, grid, self.points):
                if thing is None:
                    self._counts[1] += 1
                    continue
                self._counts[0] += 1
                truth, scored = (thing.patches, ~void) if self.level == "patch" else (thing.pixels, mask != VOID)
                curves = np.stack([self._curve(features, j, grid, truth, scored) for j in _queries(thing)])
                for row, (name, of) in enumerate(zip(PROMPTS, (curves[:1], curves[1:]), strict=True)):
                    if len(of):
                        self._sums[name] += np.rint(of.mean(axis=0) * _UNIT).astype(np.int64)
                        self._oracle[row] += int(np.rint(of.max(axis=1).mean() * _UNIT))

    def _curve(self, features: Tensor, j: int, grid: Grid, truth: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """IoU at every threshold, (T,)."""
        similarity = (features @ features[j]).clamp(-1, 1)
        if self.level == "pixel":
            shape = similarity.reshape(1, 1, *grid)
            similarity = F.interpolate(shape, size=truth.shape, mode="bilinear", align_corners=False)[0, 0]
        # the number of thresholds below a similarity: those that it exceeds
        exceeded = np.searchsorted(THRESHOLDS, similarity.double().numpy(force=True)[scored], side="left")
        inside = truth[scored]
        hits, found = (
            np.bincount(values, minlength=len(THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:]
            for values in (exceeded[inside], exceeded)
        )
        curve: np.ndarray = hits / np.maximum(found + np.count_nonzero(inside) - hits, 1)
        return curve

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition, all int64."""
        sums: dict[str, np.ndarray] = {name: values.copy() for name, values in self._sums.items()}
        return {**sums, "oracle": self._oracle.copy(), "counts": self._counts.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        for name in PROMPTS:
            self._sums[name] += state[name].astype(np.int64)
        self._oracle += state["oracle"].astype(np.int64)
        self._counts += state["counts"].astype(np.int64)

    @property
    def objects(self) -> int:
        """Number of objects that were scored."""
        return int(self._counts[0])

    @property
    def small(self) -> int:
        """Number of objects that were skipped, because no patch is more than half theirs."""
        return int(self._counts[1])

    def curve(self, prompt: Prompt = "innermost") -> np.ndarray:
        """mIoU (mean over the objects) at every one of `THRESHOLDS`, (T,)."""
        result: np.ndarray = self._sums[prompt] / _UNIT / max(1, self.objects)
        return result

    def best(self, prompt: Prompt = "innermost") -> int:
        """Index of the threshold with the highest mIoU, the middle one of several."""
        sums = self._sums[prompt]
        ties = np.flatnonzero(sums == sums.max())
        return int(ties[(len(ties) - 1) // 2])

    def oracle(self, prompt: Prompt = "innermost") -> float:
        """mIoU if every object had the best threshold for itself: an upper bound, and no result of the method."""
        return float(self._oracle[PROMPTS.index(prompt)] / _UNIT / max(1, self.objects))


def zero_shot(validation: PromptSegmentation, test: PromptSegmentation) -> dict[str, float]:
    """The figures of `test` with thresholds that were chosen on other samples; empty without objects on either side.

    Returns:
        ``miou`` and its ``threshold``, for innermost points; ``miou_random`` and ``threshold_random``; the upper bounds
        ``oracle_miou`` and ``oracle_miou_random``; ``objects`` and ``small_objects``, which were skipped.
    """
    if not validation.objects or not test.objects:
        return {}
    measured: dict[str, float] = {}
    for prompt in PROMPTS if test.points else PROMPTS[:1]:
        ending, chosen = "_random" if prompt == "random" else "", validation.best(prompt)
        measured[f"miou{ending}"] = float(test.curve(prompt)[chosen])
        measured[f"threshold{ending}"] = float(THRESHOLDS[chosen])
        measured[f"oracle_miou{ending}"] = test.oracle(prompt)
    return {**measured, "objects": float(test.objects), "small_objects": float(test.small)}


class SimilarityGap:
    """Cosines of patches of the same object (intra) and of an object and anything else (inter).

    Only images with at least one object and background count. A pair of patches is counted once and a patch is never
    paired with itself; pairs inside the background are neither.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, _BINS), np.int64)
        self._sums = np.zeros(2, np.int64)

    def update(self, tokens: Tensor, instances: Tensor, grid: Grid, parts: Tensor | None = None) -> None:
        """Add images.

        Args:
            tokens: (n, N, D) features of the patches, row by row, not normalized.
            instances: (n, h, w) numbers of objects, 0 for background and −1 for void.
            grid: (rows, columns) of the N patches; h and w are multiples of them.
            parts: (n, N) what each patch shows. Pairs of one object that show the same are then left out: what remains
                cannot be told from the patches alone.

        Raises:
            ValueError: the mask does not divide into the patches.
        """
        regions = torch.from_numpy(regions_of(instances.numpy(force=True), grid)).to(tokens.device)
        complete = (regions > 0).any(1) & (regions == 0).any(1)
        features, regions = unit(tokens)[complete], regions[complete]
        similarity = (features @ features.transpose(1, 2)).clamp(-1, 1)
        left, right = regions[:, :, None], regions[:, None, :]
        pairs = torch.ones_like(similarity[:1], dtype=torch.bool).triu(1) & (left >= 0) & (right >= 0)
        intra = pairs & (left == right) & (left > 0)
        if parts is not None:
            shown = parts.to(tokens.device)[complete]
            intra &= shown[:, :, None] != shown[:, None, :]
        for row, chosen in enumerate((intra, pairs & (left != right))):
            values = similarity[chosen].double()
            bins = ((values + 1) * (_BINS / 2)).long().clamp(max=_BINS - 1)
            self._counts[row] += torch.bincount(bins, minlength=_BINS).numpy(force=True)
            self._sums[row] += int((values * _FINE).round().long().sum())

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition: ``pairs`` (2, 4000), histograms of intra and inter; ``sums`` (2,), int64."""
        return {"pairs": self._counts.copy(), "sums": self._sums.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        self._counts += state["pairs"].astype(np.int64)
        self._sums += state["sums"].astype(np.int64)

    def compute(self) -> dict[str, float]:
        """The figures of all pairs; empty unless there are pairs of both kinds.

        Returns:
            ``intra`` and ``inter``, the mean cosines; ``gap``, their difference; ``overlap``, the intersection of their
            histograms with 100 bins, each normalized to 1; ``auroc`` of the cosine for "same object", from 4000 bins.
        """
        totals = self._counts.sum(axis=1)
        if not totals.all():
            return {}
        intra, inter = (self._sums / _FINE / totals).tolist()
        shares = self._counts / totals[:, None]
        coarse = shares.reshape(2, _COARSE, -1).sum(axis=2)
        below = shares[1].cumsum() - shares[1] / 2
        return {
            "intra": intra,
            "inter": inter,
            "gap": intra - inter,
            "overlap": float(np.minimum(*coarse).sum()),
            "auroc": float(shares[0] @ below),
        }


def unit(tokens: Tensor) -> Tensor:
    """Features of length 1, float32; a feature of length 0 stays 0."""
    return F.normalize(tokens.detach().float(), dim=-1)


def _queries(thing: PromptedObject) -> list[int]:
    return [thing.innermost, *thing.random.tolist()]
