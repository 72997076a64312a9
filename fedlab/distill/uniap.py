"""Fast universal agglomerative pooling (UniAP): regions of images from the features of their tokens, without training.

Regions start as single tokens and merge where they touch and resemble each other, at falling thresholds. All pairs of a
batch are compared at once, and everything that is connected merges at once, so that no order matters.

Source: Xu et al. 2025, arXiv 2508.06995 (S2-UniSeg), section on UniAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision

_ROUNDING = 1e-6  # a similarity that equals the threshold in exact arithmetic may miss it by so much
_LARGEST = 2**24  # numbers of an intermediate result; more pairs are compared part by part


@dataclass(frozen=True)
class Pooling:
    """How regions are merged; defaults are the paper's.

    Args:
        thresholds: τ of every layer, falling.
        feature_weight: ω_f, the weight of the similarity of features; that of the affinity profiles is ω_s = 1 − ω_f.
        temperature: σ, of the softmax that makes a region's feature.
        min_size: smallest number of tokens of a region that is returned.
        mask_mean: whether the affinities of a region are divided by its size before that softmax; the paper prints
            them without.
        repeat: whether a layer merges until nothing merges any more, as the authors' code does; otherwise only once.
    """

    thresholds: tuple[float, ...] = (0.8, 0.7, 0.6, 0.5, 0.4)
    feature_weight: float = 0.6
    temperature: float = 0.07
    min_size: int = 4
    mask_mean: bool = False
    repeat: bool = True


class Regions(NamedTuple):
    """M regions of a batch of images. A region that several layers have is there once.

    Args:
        masks: (M, rows, columns) truth values over the tokens.
        features: (M, d), of unit length.
        images: (M,) number of the image in the batch.
        layers: (M,) number of the first layer that has the region, from 0.
        semantic: (M,) whether it is of semantic pooling, which also merges regions that do not touch.
    """

    masks: Tensor
    features: Tensor
    images: Tensor
    layers: Tensor
    semantic: Tensor

    def chosen(self, rows: Tensor) -> Regions:
        """Some of the regions, by truth values (M,) or by numbers."""
        return Regions(*(values[rows] for values in self))


class _Graph(NamedTuple):
    """S regions that divide the tokens of a batch of B images among them, those of one image next to each other.

    Args:
        features: V (S, d).
        sums: (S, d), the sum of the features of a region's tokens.
        sizes: (S,) number of its tokens.
        images: (S,) its image, rising.
        owner: (B, N) the region of every token.
        edges: (2, E) pairs of regions that touch, each pair once.
    """

    features: Tensor
    sums: Tensor
    sizes: Tensor
    images: Tensor
    owner: Tensor
    edges: Tensor


@torch.no_grad()
def uniap(maps: Tensor, pooling: Pooling | None = None) -> Regions:
    """The regions of images at all layers of instance and of semantic pooling.

    In layer t, pairs of regions that touch and whose similarity is at least τ_t merge, with everything that such pairs
    connect. Semantic pooling then does the same once for all pairs of an image, touching or not, of at least
    `min_size` tokens. Its result is returned, and layer t + 1 goes on from the instances.

    Args:
        maps: features of the tokens of B images, (B, d, rows, columns); their length does not matter. They are compared
            in float32.
        pooling: how regions are merged; default: as in the paper.

    Returns:
        The regions, ordered by layer, then instances before semantic regions, then by image. Memory grows with the
        square of the number of tokens of an image.
    """
    p = Pooling() if pooling is None else pooling
    size = (maps.shape[2], maps.shape[3])
    with full_precision(maps) as (full,):
        tokens = F.normalize(full.flatten(2).transpose(1, 2), dim=2)
        graph, found = _single_tokens(tokens, size), list[Regions]()
        for layer, threshold in enumerate(p.thresholds):
            graph = _instances(tokens, graph, threshold, p)
            semantic = _merged(tokens, graph, _alike(tokens, graph, _all_pairs(graph, p.min_size), threshold, p), p)
            found += [_large(graph, layer, False, p), _large(semantic, layer, True, p)]
    together = Regions(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    once = together.chosen(_first_of_each(together))
    return once._replace(masks=once.masks.reshape(len(once.masks), *size))


def similarity(tokens: Tensor, features: Tensor, masks: Tensor, feature_weight: float = 0.6) -> Tensor:
    """S = ω_f S^f + ω_s S^s of all pairs of regions of one image, (S, S) in [−1, 1].

    S^f is the cosine of the regions' features. S^s is 1 − the mean over all tokens n of |a_i[n] − a_j[n]|, where a_i[n]
    is the mean affinity of the tokens of region i to token n.

    Args:
        tokens: F (N, d), of unit length.
        features: V (S, d), of unit length.
        masks: (S, N) truth values.
        feature_weight: ω_f; ω_s = 1 − ω_f.
    """
    sizes, count = masks.sum(1), len(features)
    pairs = torch.ones_like(sizes)[:, None].expand(count, count).nonzero().T
    none = sizes.new_zeros(1, 0)
    graph = _Graph(features, masks.to(tokens.dtype) @ tokens, sizes, torch.zeros_like(sizes), none, none)
    return _similarities(tokens[None], graph, pairs, feature_weight).reshape(count, count)


def _single_tokens(tokens: Tensor, size: tuple[int, int]) -> _Graph:
    """Every token is a region, which touches those beside, above and below it."""
    count, flat = tokens.shape[1], tokens.flatten(0, 1)
    numbers = torch.arange(len(flat), device=tokens.device)
    owner = numbers.reshape(-1, *size)
    across = torch.stack([owner[:, :, :-1].flatten(), owner[:, :, 1:].flatten()])
    down = torch.stack([owner[:, :-1].flatten(), owner[:, 1:].flatten()])
    edges = torch.cat([across, down], dim=1)
    return _Graph(flat, flat, torch.ones_like(numbers), numbers // count, owner.flatten(1), edges)


def _instances(tokens: Tensor, graph: _Graph, threshold: float, p: Pooling) -> _Graph:
    """Instance pooling of one layer. An image in which nothing merges any more is left alone, whatever others do."""
    active = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    while True:
        kept = _alike(tokens, graph, graph.edges[:, active[graph.images[graph.edges[0]]]], threshold, p)
        if not kept.shape[1]:
            return graph
        active = torch.zeros_like(active)
        active[graph.images[kept[0]]] = True
        graph = _merged(tokens, graph, kept, p)
        if not p.repeat:
            return graph


def _all_pairs(graph: _Graph, min_size: int) -> Tensor:
    """All pairs of regions of one image that have at least so many tokens, (2, P)."""
    large = (graph.sizes >= min_size).nonzero()[:, 0]
    images = graph.images[large]
    return large[(images[:, None] == images).triu(1).nonzero().T]


def _alike(tokens: Tensor, graph: _Graph, pairs: Tensor, threshold: float, p: Pooling) -> Tensor:
    """Those of the pairs (2, P) whose similarity reaches the threshold."""
    return pairs[:, _similarities(tokens, graph, pairs, p.feature_weight) >= threshold - _ROUNDING]


def _similarities(tokens: Tensor, graph: _Graph, pairs: Tensor, feature_weight: float) -> Tensor:
    """S of pairs of regions (2, P), (P,); see `similarity`."""
    profiles = _times(graph.sums, graph.images, tokens.transpose(1, 2)) / graph.sizes[:, None]
    cosines = (graph.features[pairs[0]] * graph.features[pairs[1]]).sum(1)
    parts = torch.split(pairs, max(1, _LARGEST // tokens.shape[1]), dim=1)
    apart = torch.cat([(profiles[first] - profiles[second]).abs().mean(1) for first, second in parts])
    return feature_weight * cosines + (1 - feature_weight) * (1 - apart)


def _merged(tokens: Tensor, graph: _Graph, pairs: Tensor, p: Pooling) -> _Graph:
    """The graph after everything that the pairs (2, P) connect has become one region.

    The features of an image in which something merges are made anew, V = norm(softmax((M A) / σ) F) over all tokens of
    the image; those of other images stay as they are.
    """
    labels = _components(graph, pairs)
    count = int(labels.max()) + 1
    images = _scattered(graph.images, labels, count)
    sums = torch.zeros(count, tokens.shape[2], dtype=tokens.dtype, device=tokens.device)
    sums.index_add_(0, labels, graph.sums)
    sizes = torch.zeros_like(images).index_add_(0, labels, graph.sizes)
    ends = labels[graph.edges].sort(dim=0).values
    keys = torch.unique((ends[0] * count + ends[1])[ends[0] != ends[1]])
    edges = torch.stack([keys // count, keys % count])
    affinities = _times(sums, images, tokens.transpose(1, 2))
    if p.mask_mean:
        affinities = affinities / sizes[:, None]
    features = F.normalize(_times(torch.softmax(affinities / p.temperature, dim=1), images, tokens), dim=1)
    changed = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    changed[graph.images[pairs[0]]] = True
    features = torch.where(changed[images][:, None], features, _scattered(graph.features, labels, count))
    return _Graph(features, sums, sizes, images, labels[graph.owner], edges)


def _components(graph: _Graph, pairs: Tensor) -> Tensor:
    """The number of the connected component of every region (S,), rising with the image.

    Pairs never cross images, so that the whole batch is one graph of separate blocks.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = pairs.numpy(force=True)
    count = len(graph.sizes)
    matrix = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    _, found = connected_components(matrix, directed=False)
    # numbered by their first region, whatever scipy does
    _, places, labels = np.unique(found, return_index=True, return_inverse=True)
    ranks = np.empty_like(places)
    ranks[places.argsort()] = np.arange(len(places))
    return torch.as_tensor(ranks[labels], device=pairs.device)


def _scattered(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """The value of one of the members of each component."""
    result = values.new_zeros(count, *values.shape[1:])
    result[labels] = values
    return result


def _times(rows: Tensor, images: Tensor, matrices: Tensor) -> Tensor:
    """Each row times the matrix of its image: (S, a) and (B, a, b) → (S, b).

    Args:
        rows: (S, a).
        images: (S,) rising.
        matrices: (B, a, b).
    """
    counts = torch.bincount(images, minlength=len(matrices))
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[images]
    padded = rows.new_zeros(len(matrices), int(counts.max()), rows.shape[1])
    padded[images, places] = rows
    return torch.bmm(padded, matrices)[images, places]


def _large(graph: _Graph, layer: int, semantic: bool, p: Pooling) -> Regions:
    """The regions of at least `min_size` tokens, with masks (M, N). One that is alone in its image is among them."""
    rows = (graph.sizes >= p.min_size).nonzero()[:, 0]
    images = graph.images[rows]
    masks = graph.owner[images] == rows[:, None]
    return Regions(
        masks, graph.features[rows], images, torch.full_like(rows, layer), torch.full_like(images, semantic).bool()
    )


def _first_of_each(regions: Regions) -> Tensor:
    """Numbers of the regions, rising, without those whose image, kind and mask another one before them has."""
    kinds = torch.stack([regions.images, regions.semantic.long()], dim=1).numpy(force=True)
    bits = np.packbits(regions.masks.numpy(force=True), axis=1)
    keys = np.concatenate([np.ascontiguousarray(kinds).view(np.uint8), bits], axis=1)
    _, places = np.unique(keys, axis=0, return_index=True)
    return torch.as_tensor(np.sort(places), device=regions.images.device)
