"""Segmentation by the similarity to a prompted patch, as a probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field

from fedlab.errors import DataError
from fedlab.metrics.prompts import divisible
from fedlab.metrics.similarity import Level, PromptSegmentation, SimilarityGap, zero_shot
from fedlab.probes.base import SCORE, Labels, Probe, Probed, ProbeSettings


class PromptSegmentationSettings(ProbeSettings):
    """Settings of segmentation by a prompted patch."""

    fit: str | None = Field(
        default="validation", description="set of samples on which the threshold is chosen; never a test set"
    )
    label: str = Field(
        default="instances", description="column of masks with numbers of objects: 0 is background, −1 is void"
    )
    level: Level = Field(
        default="patch", description="resolution at which segmentations are scored; pixel: after bilinear enlargement"
    )
    points: int = Field(default=5, ge=0, description="number of random prompts of each object, beside the innermost")


class PromptSegmentationProbe(Probe[PromptSegmentationSettings]):
    """Everything whose similarity to the patch under a point exceeds a threshold; nothing is trained.

    The score is the mIoU over objects with the innermost point of each as prompt. The threshold is the one that is best
    on the set ``fit``. Further values are those of `fedlab.metrics.similarity.zero_shot`, such as ``random`` for random
    points and ``oracle``, an upper bound in which every object has its own threshold, and those of `SimilarityGap`.
    """

    Settings = PromptSegmentationSettings
    needs = "tokens"

    def check(self, fit: Labels | None, test: Labels) -> None:
        for side in (fit, test):
            if side is not None and (side.values.dtype.kind not in "iu" or side.values.ndim != 3):
                found = f"{side.values.dtype} of shape {side.values.shape}"
                fix = "choose a column of masks with label, such as instances"
                raise DataError(f"labels of set {side.name!r}", found, "whole numbers of shape (n, h, w)", fix)
            if side is not None and not (side.values > 0).any():
                fix = "mark objects with numbers above 0"
                raise DataError(f"set {side.name!r}", "masks without objects", "masks with objects", fix)

    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        assert fit is not None  # as `Probe.fits` says
        validation, scored, gap = self._segmented(fit), self._segmented(test), SimilarityGap()
        measured = zero_shot(validation, scored)
        if not measured:
            raise DataError(
                f"sets {fit.name!r} and {test.name!r}",
                f"{validation.small + scored.small} objects that cover no patch by more than half",
                "objects of a patch or more in both",
                "use larger pictures, or a model with smaller patches",
            )
        gap.update(*self._tensors(test))
        named = {name.replace("miou_", "").replace("_miou", ""): value for name, value in measured.items()}
        return {SCORE: named.pop("miou"), **named, **gap.compute()}

    def _segmented(self, side: Probed) -> PromptSegmentation:
        metric = PromptSegmentation(self.settings.level, self.settings.points)
        metric.update(*self._tensors(side))
        return metric

    @staticmethod
    def _tensors(side: Probed) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        if side.tokens is None or side.grid is None:
            raise DataError(f"features of set {side.name!r}", "no grid of patches", "the tokens of a grid of patches")
        masks = divisible(torch.from_numpy(side.labels.astype(np.int32)), side.grid)
        return torch.from_numpy(side.tokens), masks, side.grid
