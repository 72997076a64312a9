"""UniAP: known regions, what all results have in common, batches, and a sequential reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.uniap import Pooling, Regions, similarity, uniap
from fedlab.metrics.instances import MaskRecall, ious

SIDE = 16


def squares() -> Tensor:
    """Background of kind 0; a 4 × 4 and a 5 × 5 square of kind 1, apart; a 4 × 4 square of kind 2; (16, 16)."""
    kinds = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    kinds[1:5, 1:5], kinds[9:14, 2:7], kinds[2:6, 10:14] = 1, 1, 2
    return kinds


def orthonormal(kinds: Tensor, dim: int = 4) -> Tensor:
    """Features of unit length, equal within a kind and orthogonal otherwise, (1, d, rows, columns)."""
    return F.one_hot(kinds, dim).float().permute(2, 0, 1)[None]


def sizes(regions: Regions, layer: int, semantic: bool) -> list[int]:
    chosen = (regions.layers == layer) & (regions.semantic == semantic)
    return sorted(regions.masks[chosen].flatten(1).sum(1).tolist())


def partition(regions: Regions) -> set[frozenset[int]]:
    return {frozenset(mask.flatten().nonzero()[:, 0].tolist()) for mask in regions.masks}


def rectangles(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A 20 × 20 grid with five rectangles of side 4 to 6 that do not touch, two of one kind, and noisy 32-d features.

    Returns:
        Features (1, 32, 20, 20), numbers of the regions and kinds (20, 20); the background is 0.
    """
    rng = np.random.default_rng(seed)
    while True:
        numbers, kinds, placed = np.zeros((20, 20), int), np.zeros((20, 20), int), 0
        for _ in range(200):
            (height, width), (top, left) = rng.integers(4, 7, 2), rng.integers(0, 15, 2)
            around = numbers[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1]
            if placed < 5 and top + height <= 20 and left + width <= 20 and not around.any():
                placed += 1
                numbers[top : top + height, left : left + width] = placed
                kinds[top : top + height, left : left + width] = max(1, placed - 1)
        if placed == 5:
            break
    embeddings = torch.from_numpy(np.linalg.qr(rng.standard_normal((32, 32)))[0][:5]).float()
    noise = torch.from_numpy(rng.standard_normal((20, 20, 32))).float() * 0.5 / 32**0.5
    features = (embeddings[torch.from_numpy(kinds)] + noise).permute(2, 0, 1)[None]
    return features, torch.from_numpy(numbers), torch.from_numpy(kinds)


def sequential(tokens: Tensor, grid: tuple[int, int], threshold: float) -> set[frozenset[int]]:
    """Always merge the most similar pair of regions that touch; the feature of a region is the mean of its tokens."""
    count = len(tokens)
    masks = torch.eye(count, dtype=torch.bool)
    numbers = torch.arange(count).reshape(grid)
    touching = torch.zeros(count, count, dtype=torch.bool)
    for first, second in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        touching[first.flatten(), second.flatten()] = touching[second.flatten(), first.flatten()] = True
    while len(masks) > 1:
        means = F.normalize(masks.float() @ tokens, dim=1)
        found = similarity(tokens, means, masks).masked_fill(~touching, -2)
        best = int(found.argmax())
        first, second = sorted(divmod(best, len(masks)))
        if found.flatten()[best] < threshold - 1e-6:
            break
        masks[first] |= masks[second]
        touching[first] |= touching[second]
        touching[:, first] |= touching[:, second]
        touching[first, first] = False
        rest = torch.arange(len(masks)) != second
        masks, touching = masks[rest], touching[rest][:, rest]
    return {frozenset(mask.nonzero()[:, 0].tolist()) for mask in masks}


# known answers (§8)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.6, 1.0])
def test_two_halves_are_as_similar_as_their_features(weight: float) -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.75**0.5])
    tokens = torch.stack([a, a, b, b])
    found = similarity(tokens, tokens, torch.eye(4, dtype=torch.bool), weight)
    torch.testing.assert_close(found, torch.tensor([[1, 1, 0.5, 0.5]] * 2 + [[0.5, 0.5, 1, 1]] * 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("threshold", "regions"), [(0.5, 1), (0.6, 2)])
def test_a_pair_merges_from_its_threshold_on(threshold: float, regions: int) -> None:
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5], [0.5, 0.75**0.5]])
    found = uniap(tokens.T[None, :, None], Pooling(thresholds=(threshold,), min_size=1))
    assert int((~found.semantic).sum()) == regions


def test_spatial_similarity_compares_mean_affinities_over_all_tokens() -> None:
    """Regions {0} and {1, 2} of tokens e₀, e₀, e₁: profiles (1, 1, 0) and (½, ½, ½) lie ½ apart."""
    tokens = torch.eye(2)[[0, 0, 1]]
    masks = torch.tensor([[True, False, False], [False, True, True]])
    found = similarity(tokens, torch.eye(2), masks, 0.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    torch.testing.assert_close(similarity(tokens, torch.eye(2), masks, 1.0), torch.eye(2))


def test_similarities_are_symmetric_and_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = F.normalize(torch.randn(30, 6, generator=generator), dim=1)
    masks = torch.rand(7, 30, generator=generator) < 0.3
    masks[:, 0] = True
    features = F.normalize(torch.randn(7, 6, generator=generator), dim=1)
    found = similarity(tokens, features, masks)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found.diagonal(), torch.ones(7))
    assert float(found.abs().max()) <= 1 + 1e-6


def test_squares_are_found_in_every_layer_and_equal_ones_are_joined() -> None:
    found = uniap(orthonormal(squares()))
    # every layer has the same regions, and each region is returned once
    assert sizes(found, 0, False) == [16, 16, 25, 199]
    assert sizes(found, 0, True) == [16, 41, 199]
    assert set(found.layers.tolist()) == {0}
    for threshold in (0.8, 0.7, 0.6, 0.5, 0.4):
        alone = uniap(orthonormal(squares()), Pooling(thresholds=(threshold,)))
        assert sizes(alone, 0, False) == [16, 16, 25, 199]
        assert sizes(alone, 0, True) == [16, 41, 199]


def test_what_is_all_alike_is_one_region_and_is_returned() -> None:
    found = uniap(torch.ones(1, 3, 6, 5))
    assert sizes(found, 0, False) == sizes(found, 0, True) == [30]
    assert len(found.masks) == 2


def test_small_regions_are_left_out() -> None:
    kinds = torch.zeros(6, 6, dtype=torch.int64)
    kinds[0, :3], kinds[5, :4] = 1, 2
    assert sizes(uniap(orthonormal(kinds)), 0, False) == [4, 29]
    assert sizes(uniap(orthonormal(kinds), Pooling(min_size=3)), 0, False) == [3, 4, 29]


def test_semantic_regions_do_not_enter_the_next_layer() -> None:
    """The two squares of one kind are semantic regions at 0.8 and still two instances at 0.4."""
    found = uniap(orthonormal(squares()), Pooling(thresholds=(0.8, 0.4)))
    assert 41 not in found.masks[~found.semantic].flatten(1).sum(1).tolist()
    assert 41 in found.masks[found.semantic].flatten(1).sum(1).tolist()


def test_features_are_a_softmax_over_all_tokens() -> None:
    """Tokens a, a, b with a · b = 0.8 and the regions {a, a} and {b}: V of {a, a} also contains b."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.6])
    tokens = torch.stack([a, a, b])
    for mean in (False, True):
        pooling = Pooling(thresholds=(0.99,), min_size=2, temperature=0.5, mask_mean=mean)
        found = uniap(tokens.T[None, :, None], pooling)
        affinity = torch.tensor([2.0, 2.0, 1.6]) / (2 if mean else 1)
        expected = F.normalize(torch.softmax(affinity / 0.5, dim=0) @ tokens, dim=0)
        torch.testing.assert_close(found.features[0], expected)


def test_one_pass_leaves_what_a_second_one_would_merge() -> None:
    features = torch.cat([rectangles(seed)[0] for seed in range(3)])
    once = uniap(features, Pooling(thresholds=(0.8,), min_size=1, repeat=False))
    stable = uniap(features, Pooling(thresholds=(0.8,), min_size=1))
    assert int((~stable.semantic).sum()) < int((~once.semantic).sum())


# what holds for all features


def test_instances_divide_the_tokens_are_connected_and_lie_in_those_of_the_next_layer() -> None:
    from scipy.ndimage import label

    generator = torch.Generator().manual_seed(1)
    smooth = F.interpolate(torch.randn(2, 6, 4, 4, generator=generator), size=(9, 9), mode="bilinear")
    thresholds = (0.95, 0.9, 0.8, 0.6)
    layers = [uniap(smooth, Pooling(thresholds=thresholds[: n + 1], min_size=1)) for n in range(len(thresholds))]
    for image in range(2):
        before: set[frozenset[int]] = set()
        for found in layers:
            # the regions of the last layer are those that no larger instance contains
            masks = found.masks[(found.images == image) & ~found.semantic]
            flat = masks.flatten(1)
            largest = [m for m in flat if not any(bool((m & ~o).sum() == 0) and o.sum() > m.sum() for o in flat)]
            assert bool((torch.stack(largest).sum(0) == 1).all())
            for mask in masks:
                assert label(mask.numpy())[1] == 1
            now = {frozenset(m.nonzero()[:, 0].tolist()) for m in largest}
            assert all(any(small <= large for large in now) for small in before)
            before = now


def test_a_batch_is_as_its_images_alone_in_any_order() -> None:
    maps = torch.cat([orthonormal(squares()), torch.ones(1, 4, SIDE, SIDE), orthonormal(squares().T.flip(0))])
    maps = maps + 0.1 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(2))
    together = uniap(maps)
    for order in ([0, 1, 2], [2, 0, 1]):
        found = uniap(maps[order])
        for place, image in enumerate(order):
            alone, batch = uniap(maps[image : image + 1]), found.chosen(found.images == place)
            assert torch.equal(alone.masks, batch.masks)
            assert torch.equal(alone.layers, batch.layers)
            assert torch.equal(alone.semantic, batch.semantic)
            torch.testing.assert_close(alone.features, batch.features, atol=1e-5, rtol=0)
    assert len(together.masks) == sum(len(uniap(maps[i : i + 1]).masks) for i in range(3))


def test_an_image_in_which_nothing_merges_is_not_changed_by_others() -> None:
    """Two tokens at ½ stay apart at 0.55. New features, which other images get, would be alike enough to merge."""
    apart, alike = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    maps = torch.stack([apart, alike]).transpose(1, 2)[..., None]
    found = uniap(maps, Pooling(thresholds=(0.6, 0.55), min_size=1))
    first = found.chosen(found.images == 0)
    assert sizes(first, 0, False) == [1, 1]
    assert set(first.layers.tolist()) == {0}
    torch.testing.assert_close(first.features[:2], apart)


def test_no_mask_is_returned_twice() -> None:
    found = uniap(torch.cat([rectangles(seed)[0] for seed in range(2)]))
    keys = zip(found.images.tolist(), found.semantic.tolist(), found.masks.flatten(1).tolist(), strict=True)
    assert max(Counter((i, s, tuple(m)) for i, s, m in keys).values()) == 1
    torch.testing.assert_close(found.features.norm(dim=1), torch.ones(len(found.features)))


def test_without_a_region_that_is_large_enough_there_are_none() -> None:
    found = uniap(orthonormal(squares()), Pooling(min_size=300))
    assert [len(values) for values in found] == [0] * 5
    assert found.masks.shape[1:] == (16, 16)


def test_gradients_neither_reach_nor_leave_it() -> None:
    found = uniap(orthonormal(squares()).requires_grad_())
    assert not found.features.requires_grad


def test_pairs_compared_part_by_part_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, whole = rectangles(0)[0], uniap(rectangles(0)[0])
    monkeypatch.setattr("fedlab.distill.uniap._LARGEST", 1000)
    assert torch.equal(uniap(maps).masks, whole.masks)


# experiments of seconds (§7, acceptance A and B)


@pytest.mark.parametrize("threshold", [0.8, 0.7, 0.6, 0.5, 0.4])
def test_clean_features_give_the_partition_of_the_sequential_reference(threshold: float) -> None:
    kinds = squares()[:11, :8]
    maps = orthonormal(kinds)
    found = uniap(maps, Pooling(thresholds=(threshold,), min_size=1))
    reference = sequential(maps.flatten(2)[0].T, (11, 8), threshold)
    assert partition(found.chosen(~found.semantic)) == reference
    assert len(reference) == 3


def test_noisy_rectangles_are_found_and_k_means_cannot_tell_equal_ones_apart() -> None:
    """Mean of 8 seeds: recall ≥ 0.95 with the background, the pair of one kind is joined, k-means stays at ≤ 0.80."""
    from sklearn.cluster import KMeans

    recalls, joined, clustered = [], [], []
    for seed in range(8):
        features, numbers, kinds = rectangles(seed)
        truths = np.stack([numbers.numpy() == number for number in range(6)])
        found = uniap(features)
        recalls.append(_recall(found.masks[~found.semantic].numpy(), truths))
        pair = (kinds == 1).numpy()[None]
        joined.append(float(ious(found.masks[found.semantic].numpy(), pair).max()))
        labels = KMeans(5, n_init=3, random_state=0).fit_predict(features.flatten(2)[0].T.numpy()).reshape(20, 20)
        clustered.append(_recall(np.stack([labels == label for label in range(5)]), truths))
    assert np.mean(recalls) >= 0.95
    assert np.min(joined) >= 0.9
    assert np.mean(clustered) <= 0.80


def _recall(masks: np.ndarray, truths: np.ndarray) -> float:
    metric = MaskRecall()
    metric.update(masks, truths)
    return metric.compute()["recall"]
