"""Segmentation by a prompted patch as a probe: known answers, and sets on which nothing can be measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlab.errors import DataError
from fedlab.probes.base import Labels, Probed
from fedlab.probes.prompt_segmentation import PromptSegmentationProbe

RNG = np.random.default_rng(0)
MASKS = np.zeros((4, 16, 16), np.int32)
MASKS[:, 4:12, 4:16] = 7


def side(name: str, near: float = 0.0, masks: np.ndarray = MASKS, **changes: Any) -> Probed:
    """Features of 4 × 4 patches with a cosine of 1 inside the object and of `near` with everything else."""
    inside = (
        masks[:, 2::4, 2::4].reshape(len(masks), 16) > 0 if masks.shape[1:] == (16, 16) else np.zeros((len(masks), 16))
    )
    cosine = np.where(inside, 1.0, near)
    tokens = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=2).astype(np.float32)
    given: dict[str, Any] = {"tokens": tokens, "grid": (4, 4), **changes}
    return Probed(name, tokens.mean(1), masks, **given)


def run(fit: Probed, test: Probed, **settings: Any) -> dict[str, float]:
    probe = PromptSegmentationProbe(PromptSegmentationProbe.Settings.model_validate(settings))
    return dict(probe.run(fit, test, RNG))


def test_an_object_that_stands_out_is_found() -> None:
    found = run(side("validation"), side("test"))
    assert found["score"] == found["random"] == found["oracle"] == found["oracle_random"] == found["auroc"] == 1
    assert found["overlap"] == 0
    assert found["objects"] == 4
    assert found["small_objects"] == 0


def test_the_threshold_is_that_of_the_set_to_fit_on() -> None:
    """0.5 and less would be right there, and takes in everything on the test set."""
    found = run(side("validation", near=-0.9), side("test", near=0.6))
    assert found["threshold"] < 0.6
    assert found["score"] == pytest.approx(6 / 16)
    assert found["oracle"] == 1


def test_random_prompts_can_be_left_out_and_pixels_scored() -> None:
    assert "random" not in run(side("validation"), side("test"), points=0)
    assert 0.5 < run(side("validation"), side("test"), level="pixel")["score"] <= 1


def test_masks_of_any_size_are_laid_over_the_patches() -> None:
    masks = np.zeros((2, 18, 18), np.int32)
    masks[:, :9] = 1
    cosine = np.repeat([[1.0] * 8 + [0.0] * 8], 2, axis=0)
    tokens = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=2).astype(np.float32)
    one = Probed("validation", tokens.mean(1), masks, tokens, (4, 4))
    assert run(one, one)["score"] == 1


def test_a_grid_of_patches_and_objects_of_a_patch_are_needed() -> None:
    with pytest.raises(DataError, match="no grid"):
        run(side("validation"), side("test", grid=None))
    tiny = np.zeros((2, 16, 16), np.int32)
    tiny[:, 0, 0] = 1
    with pytest.raises(DataError, match="cover no patch"):
        run(side("validation"), side("test", masks=tiny))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(4, np.int64), "whole numbers of shape"),
        (np.ones((4, 8, 8), np.float32), "whole numbers of shape"),
        (np.zeros((4, 8, 8), np.int32), "masks with objects"),
    ],
)
def test_labels_that_are_no_masks_of_objects_are_refused(values: np.ndarray, message: str) -> None:
    fine = Labels("validation", MASKS)
    PromptSegmentationProbe().check(fine, Labels("test", MASKS))
    with pytest.raises(DataError, match=message):
        PromptSegmentationProbe().check(fine, Labels("test", values))
    with pytest.raises(DataError, match=message):
        PromptSegmentationProbe().check(Labels("validation", values), fine)
