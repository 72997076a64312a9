"""Zero-shot segmentation by a prompt and the similarity of patches: known answers, invariances, merging."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedlab.data.generated.materials import draw_patterns, draw_scenes
from fedlab.metrics.prompts import prompted_objects, regions_of
from fedlab.metrics.similarity import THRESHOLDS, PromptSegmentation, SimilarityGap, zero_shot
from fedlab.seeding import numpy_generator

GRID = (4, 4)
OBJECT = torch.zeros(1, 16, 16, dtype=torch.int32)
OBJECT[0, 4:12, 4:16] = 7  # 2 × 3 patches of 4 × 4 pixels


def one_hot() -> Tensor:
    """Features (1, 16, 3) that tell the object from the background, (2, 3) patches of the former."""
    patches = (OBJECT[0, ::4, ::4].reshape(-1) == 7).long()
    return torch.nn.functional.one_hot(patches, 3)[None].float()


def segmented(tokens: Tensor, instances: Tensor = OBJECT, grid: Any = GRID, **settings: Any) -> PromptSegmentation:
    metric = PromptSegmentation(**settings)
    metric.update(tokens, instances, grid)
    return metric


def gaps(tokens: Tensor, instances: Tensor = OBJECT, grid: Any = GRID, parts: Tensor | None = None) -> dict[str, float]:
    metric = SimilarityGap()
    metric.update(tokens, instances, grid, parts)
    return metric.compute()


def at(threshold: float) -> int:
    """Index of the first threshold that is not below."""
    return int(np.searchsorted(THRESHOLDS, threshold - 1e-12))


def scattered(seed: int = 0, n: int = 6) -> tuple[Tensor, Tensor]:
    """Random features, and masks of several objects."""
    generator = torch.Generator().manual_seed(seed)
    instances = torch.zeros(n, 16, 16, dtype=torch.int32)
    for index, (top, left) in enumerate(torch.randint(0, 8, (n, 2), generator=generator).tolist()):
        instances[index, top : top + 8, left : left + 8] = 3
        instances[index, :5, 11:] = 5
    return torch.randn(n, 16, 6, generator=generator), instances


# known answers


@pytest.mark.parametrize("points", [0, 5])
def test_one_hot_features_of_an_object_segment_it_at_every_threshold_from_0_below_1(points: int) -> None:
    metric = segmented(one_hot(), points=points)
    assert (metric.curve()[(THRESHOLDS >= 0) & (THRESHOLDS < 1)] == 1).all()
    assert metric.curve()[-1] == 0  # t = 1: nothing exceeds it
    assert metric.oracle() == 1
    assert metric.objects == 1
    assert gaps(one_hot()) == {"intra": 1, "inter": 0, "gap": 1, "overlap": 0, "auroc": 1}


def test_constant_features_select_everything_or_nothing() -> None:
    tokens = torch.ones(1, 16, 5)
    metric = segmented(tokens)
    assert metric.curve("random")[THRESHOLDS < 0.9999] == pytest.approx(6 / 16)
    assert metric.curve()[-1] == 0
    found = gaps(tokens)
    assert (found["intra"], found["inter"]) == pytest.approx((1, 1), abs=1e-6)
    assert (found["overlap"], found["auroc"]) == (1, 0.5)


def test_a_prompt_finds_the_patches_that_show_its_own_pattern() -> None:
    """Orthogonal patterns without noise: IoU = m / n for an object of n patches of which m show the prompt's."""
    parts = torch.zeros(16, dtype=torch.long)
    inside = torch.nonzero(OBJECT[0, ::4, ::4].reshape(-1) == 7).flatten()
    parts[inside] = torch.tensor([1, 2, 1, 1, 2, 1])
    tokens = torch.nn.functional.one_hot(parts, 3)[None].float()
    (thing,) = prompted_objects(OBJECT[0].numpy(), GRID, 5)
    assert thing is not None
    shown = (parts[inside] == parts[thing.innermost]).sum().item()
    at_zero = (THRESHOLDS >= 0) & (THRESHOLDS < 1)
    assert segmented(tokens).curve()[at_zero] == pytest.approx(shown / 6)
    counts = [(parts[inside] == parts[j]).sum().item() / 6 for j in thing.random]
    assert segmented(tokens).curve("random")[at_zero] == pytest.approx(np.mean(counts))


def test_raw_pixels_of_materials_without_noise_find_the_half_that_shows_the_prompts_pattern() -> None:
    rng = numpy_generator(0, "test")
    flat = np.zeros((4, 4, 4))
    flat[np.arange(4), np.arange(4), 0] = 1  # orthogonal patterns of two materials
    scenes = draw_scenes(5, flat, 0.0, rng)
    patches = torch.from_numpy(scenes.pixels.reshape(5, 8, 4, 8, 4)).permute(0, 1, 3, 2, 4).reshape(5, 64, 16)
    expected = []
    for mask, parts in zip(scenes.objects, scenes.parts.reshape(5, 64), strict=True):
        (thing,) = prompted_objects(mask, (8, 8), 5)
        assert thing is not None
        expected.append((parts[thing.patches] == parts[thing.innermost]).mean())
    metric = segmented(patches, torch.from_numpy(scenes.objects), (8, 8))
    assert metric.curve()[at(0.3)] == pytest.approx(np.mean(expected))


def test_pixels_are_scored_after_bilinear_enlargement() -> None:
    """One row of two patches of two pixels: S = (1, 0) becomes (1, 0.75, 0.25, 0)."""
    instances = torch.tensor([[[1, 1, 0, 0]]])
    metric = segmented(torch.eye(2)[None], instances, (1, 2), level="pixel")
    assert metric.curve()[at(0.5)] == 1
    assert metric.curve()[at(0.8)] == 0.5
    assert metric.curve()[at(0.1)] == pytest.approx(2 / 3)
    assert segmented(torch.eye(2)[None], instances, (1, 2)).curve()[at(0.8)] == 1


def test_void_counts_nowhere() -> None:
    """Half of the object's neighbors are void: a prediction that covers them is not wrong."""
    instances = OBJECT.clone()
    instances[0, :4] = -1
    everything = torch.ones(1, 16, 2)
    assert segmented(everything, instances).curve()[at(0.5)] == pytest.approx(6 / 12)
    assert segmented(everything, instances, level="pixel").curve()[at(0.5)] == pytest.approx(96 / 192)
    void = torch.from_numpy(regions_of(instances.numpy(), GRID) == -1).long()
    found = gaps(torch.nn.functional.one_hot(void, 2).float(), instances)
    assert found["intra"] == found["inter"] == 1  # a pair with a void patch would have a cosine of 0


def test_auroc_is_that_of_all_pairs() -> None:
    tokens, instances = scattered()
    regions = regions_of(instances.numpy(), GRID)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    scores, same = [], []
    for features, region in zip(unit, regions, strict=True):
        for i in range(16):
            for j in range(i + 1, 16):
                if min(region[i], region[j]) >= 0 and max(region[i], region[j]) > 0:
                    scores.append(float(features[i] @ features[j]))
                    same.append(region[i] == region[j])
    found = gaps(tokens, instances)
    assert found["auroc"] == pytest.approx(roc_auc_score(same, scores), abs=2e-4)
    chosen = np.array(same)
    assert found["intra"] == pytest.approx(np.array(scores)[chosen].mean(), abs=1e-6)
    assert found["inter"] == pytest.approx(np.array(scores)[~chosen].mean(), abs=1e-6)
    bins = [np.histogram(np.array(scores)[part], 100, (-1, 1))[0] / part.sum() for part in (chosen, ~chosen)]
    assert found["overlap"] == pytest.approx(np.minimum(*bins).sum(), abs=1e-6)


def test_distributions_with_far_means_may_overlap() -> None:
    """Half of the object is like the background: the histograms say so, their means do not."""
    tokens = one_hot()
    inside = torch.nonzero(OBJECT[0, ::4, ::4].reshape(-1) == 7).flatten()
    tokens[0, inside[:3]] = torch.tensor([1.0, 0.0, 0.0])
    found = gaps(tokens)
    # of 15 pairs inside 6 are alike, of 60 with the background 30
    assert found["overlap"] == pytest.approx(0.5 + 6 / 15)
    assert found["gap"] == pytest.approx(6 / 15 - 0.5)


def test_pairs_that_show_the_same_part_can_be_left_out() -> None:
    tokens = one_hot()
    inside = torch.nonzero(OBJECT[0, ::4, ::4].reshape(-1) == 7).flatten()
    parts = torch.zeros(1, 16, dtype=torch.long)
    parts[0, inside[::2]] = 1
    tokens[0, inside[::2]] = torch.tensor([0.0, 0.0, 1.0])  # each part has a feature of its own
    assert gaps(tokens)["intra"] == pytest.approx(6 / 15)
    linked = gaps(tokens, parts=parts)
    assert (linked["intra"], linked["inter"], linked["auroc"]) == (0, 0, 0.5)


def test_an_image_of_object_alone_has_no_pairs() -> None:
    assert gaps(one_hot(), torch.ones(1, 16, 16, dtype=torch.int32)) == {}
    assert gaps(one_hot(), torch.zeros(1, 16, 16, dtype=torch.int32)) == {}


# prompts


def test_prompts_lie_in_patches_of_the_object() -> None:
    instances = np.zeros((16, 16), np.int32)
    instances[1:11, 3:9] = 2  # patches of which it has less than half at its border
    (thing,) = prompted_objects(instances, GRID, 400)
    assert thing is not None
    assert thing.patches.reshape(GRID).nonzero()[0].tolist() == [0, 1, 2]
    assert thing.patches.reshape(GRID).nonzero()[1].tolist() == [1, 1, 1]
    assert thing.patches[thing.random].all()
    assert set(thing.random.tolist()) == set(np.flatnonzero(thing.patches).tolist())
    assert thing.innermost == 5  # column 5, in the middle of rows 3 to 8: three pixels from every side


def test_the_pictures_border_is_a_border_of_the_object() -> None:
    instances = np.ones((16, 16), np.int32)
    (thing,) = prompted_objects(instances, GRID, 0)
    assert thing is not None
    assert thing.innermost == 6  # row 7, column 8, one of the four middle pixels


def test_objects_without_a_patch_of_their_own_are_counted_and_not_scored() -> None:
    instances = OBJECT.clone()
    instances[0, 0, 0] = 9
    metric = segmented(one_hot(), instances)
    assert (metric.objects, metric.small) == (1, 1)
    assert zero_shot(metric, metric)["small_objects"] == 1


def test_exactly_half_a_patch_is_no_majority() -> None:
    instances = np.zeros((1, 4, 4), np.int32)
    instances[0, :2] = 1
    assert regions_of(instances, (1, 1)).tolist() == [[-1]]
    instances[0, 2, 0] = 1
    assert regions_of(instances, (1, 1)).tolist() == [[1]]
    with pytest.raises(ValueError, match="does not divide"):
        regions_of(np.zeros((1, 16, 15), np.int32), GRID)


# invariances


def test_the_length_of_features_changes_nothing_and_a_shift_of_all_does() -> None:
    tokens, instances = scattered()
    scale = torch.rand(6, 16, 1, generator=torch.Generator().manual_seed(1)) * 9 + 0.1
    plain, scaled, shifted = (segmented(values, instances) for values in (tokens, tokens * scale, tokens + 3))
    assert plain.curve() == pytest.approx(scaled.curve())
    assert gaps(tokens, instances) == pytest.approx(gaps(tokens * scale, instances), abs=1e-3)
    assert np.abs(plain.curve() - shifted.curve()).max() > 0.05
    assert abs(gaps(tokens, instances)["inter"] - gaps(tokens + 3, instances)["inter"]) > 0.3


@pytest.mark.parametrize("level", ["patch", "pixel"])
def test_order_batches_and_numbers_of_objects_change_no_bit(level: Any) -> None:
    tokens, instances = scattered()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    whole, permuted, pieces = segmented(tokens, instances, level=level), PromptSegmentation(level), SimilarityGap()
    permuted.update(tokens[order], instances[order] * 2 - (instances[order] < 0).int(), GRID)
    merged = PromptSegmentation(level)
    for part in (slice(0, 2), slice(2, 6)):
        merged.merge(segmented(tokens[part], instances[part], level=level).state())
        pieces.update(tokens[part], instances[part], GRID)
    for other in (permuted, merged):
        for name, values in whole.state().items():
            assert np.array_equal(values, other.state()[name])
    assert pieces.compute() == gaps(tokens, instances)
    again = SimilarityGap()
    again.merge(pieces.state())
    assert again.compute() == pieces.compute()


def test_the_threshold_comes_from_the_validation_samples_alone() -> None:
    """On the test half another threshold would be better, and the oracle has one for each object."""
    near = one_hot() + torch.tensor([0.0, 0.0, 2.0])  # the background resembles the object: cosine 4 / 5
    validation, test = segmented(one_hot()), segmented(near)
    found = zero_shot(validation, test)
    assert found["threshold"] < 0.8
    assert found["miou"] == pytest.approx(6 / 16)
    assert found["oracle_miou"] == 1
    assert zero_shot(test, validation)["threshold"] >= 0.8
    assert zero_shot(PromptSegmentation(), test) == {}


def test_the_middle_of_several_best_thresholds_is_chosen() -> None:
    chosen = THRESHOLDS[segmented(one_hot()).best()]
    assert 0.3 < chosen < 0.95


def test_materials_patterns_have_mean_0_and_variance_1() -> None:
    patterns = draw_patterns(6, numpy_generator(3, "test"))
    assert patterns.shape == (12, 4, 4)
    assert np.abs(patterns.mean(axis=(1, 2))).max() < 1e-9
    assert patterns.std(axis=(1, 2)) == pytest.approx(1)
