"""What the deployed networks find in images, and how it is compared with true masks (§7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.method import network
from fedlab.methods.s2_uniseg.matching import regions_of
from fedlab.methods.s2_uniseg.networks import Pyramid, Student, pyramid_of
from fedlab.methods.s2_uniseg.settings import S2UniSegSettings
from fedlab.methods.s2_uniseg.views import enlarged, normalized
from fedlab.metrics.clustering import Contingency
from fedlab.metrics.instances import MaskAP, MaskRecall, ious, objects_of
from fedlab.metrics.panoptic import VOID, PanopticQuality

_SMALLEST = 4  # pixels of a query's mask, at stride 4
_HALF = 0.5


class Found(NamedTuple):
    """What is found in one image, at the size of its true masks.

    Args:
        instances: (q, h, w) truth values, masks of [INS] queries that have any.
        scores: (q,) mean probability inside each mask.
        segments: (h, w) number of the instance that each pixel belongs to most, −1 for none.
        clusters: (q,) the pseudo-class that most pixels of each segment have.
        semantics: (r, h, w) truth values, masks of all [SEM] queries.
        codes: (h, w) pseudo-class of each pixel: the prototype of the [SEM] query that claims it most.
        pooled: (m, h, w) truth values, the instances that UniAP finds without the student.
    """

    instances: np.ndarray
    scores: np.ndarray
    segments: np.ndarray
    clusters: np.ndarray
    semantics: np.ndarray
    codes: np.ndarray
    pooled: np.ndarray


@torch.no_grad()
def found_in(s: S2UniSegSettings, networks: nn.ModuleDict, images: Tensor, size: tuple[int, int]) -> list[Found]:
    """What the teacher's encoder and the student's decoder find in whole images (n, C, H, W) in [0, 1].

    Args:
        s: settings.
        networks: by role.
        images: the images.
        size: height and width of the masks.
    """
    pyramid = pyramid_of(networks, "teacher", normalized(s, images))
    student = network(networks, "student", Student)
    made = student.decode(pyramid)
    small = made.masks[-1].float().sigmoid()
    codes = student.logits(made.queries[-1]).argmax(-1)
    pooled = _pooled(s, pyramid, size)
    parts = zip(small, enlarged(small, size), codes, pooled, strict=True)
    return [_found(s, *part) for part in parts]


def _found(s: S2UniSegSettings, small: Tensor, masks: Tensor, codes: Tensor, pooled: Tensor) -> Found:
    """One image: masks of all queries at stride 4 and at full size, (Q, h, w), their codes (Q,), pooled instances."""
    first = s.decoder.instances
    large = (small[:first] > _HALF).flatten(1).sum(1) >= _SMALLEST
    inside = masks[:first] > _HALF
    kept = (large & inside.flatten(1).any(1)).nonzero()[:, 0]
    inside, own = inside[kept], masks[:first][kept]
    claims = torch.where(inside, own, 0.0)
    scores = claims.flatten(1).sum(1) / inside.flatten(1).sum(1)
    pixels = codes[first:][masks[first:].argmax(0)]
    if len(kept):
        strongest, segments = (claims * scores[:, None, None]).max(0)
        segments = torch.where(strongest > 0, segments, -1)
    else:
        segments = torch.full_like(pixels, -1)
    counts = torch.zeros(len(kept) + 1, s.prototypes, dtype=torch.int64, device=codes.device)
    counts.index_put_((segments.flatten(), pixels.flatten()), torch.ones_like(pixels).flatten(), accumulate=True)
    values = (inside, scores, segments, counts[:-1].argmax(1), masks[first:] > _HALF, pixels, pooled)
    return Found(*(value.numpy(force=True) for value in values))


def _pooled(s: S2UniSegSettings, pyramid: Pyramid, size: tuple[int, int]) -> list[Tensor]:
    """The instances of UniAP in each image, (m, h, w) truth values."""
    regions = regions_of(s, pyramid)
    masks = F.interpolate(regions.masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > _HALF
    return [masks[(regions.images == image) & ~regions.semantic] for image in range(len(pyramid[0]))]


class Judgement:
    """All figures that need true masks, from counts that add up over clients.

    Args:
        settings: the method's.
        classes: number of classes; 0 if the data has none.
    """

    def __init__(self, settings: S2UniSegSettings, classes: int) -> None:
        self._classed = classes > 0
        self._known = max(1, classes)
        clusters = settings.prototypes if self._classed else 1
        self.precision, self.regions, self.pooled = MaskAP(), MaskRecall(), MaskRecall()
        self.semantic = Contingency(clusters, self._known)
        self.panoptic = PanopticQuality(clusters, self._known)
        self._joined = np.zeros(2, np.int64)

    def update(self, found: Found, instances: np.ndarray | None, classes: np.ndarray | None) -> None:
        """Add an image.

        Args:
            found: what is found in it.
            instances: (h, w) numbers of its objects, 0 for background and −1 for void, if they are known.
            classes: (h, w) class of each pixel, −1 for unlabeled, if they are known.
        """
        if classes is not None:
            self.semantic.update(found.codes, classes)
        if instances is None:
            return
        truths = objects_of(instances)
        self.precision.update(found.instances, found.scores, instances)
        background = instances == 0
        everything = np.concatenate([truths, background[None]]) if background.any() else truths
        known = instances != VOID
        self.regions.update(found.instances & known, everything)
        self.pooled.update(found.pooled & known, everything)
        clusters = found.clusters if self._classed else np.zeros_like(found.clusters)
        self.panoptic.update(found.segments, clusters, *true_segments(instances, classes))
        if classes is not None:
            self._join(found.semantics & known, truths, classes)

    def _join(self, masks: np.ndarray, truths: np.ndarray, classes: np.ndarray) -> None:
        """Count the classes of which several objects are there, and those that one [SEM] query shows as a whole."""
        of = np.array([_most(classes[truth]) for truth in truths], np.int64)
        for kind in np.unique(of[of >= 0]):
            if (members := of == kind).sum() > 1:
                together = truths[members].any(axis=0)
                parts = [masks[:, truth].mean(axis=1) for truth in truths[members]]
                # the largest of the objects may be more than half of them all
                whole = (ious(masks, together[None])[:, 0] >= _HALF) & (np.array(parts) >= _HALF).all(axis=0)
                self._joined += [1, int(whole.any())]

    def state(self) -> dict[str, np.ndarray]:
        """Sums to be merged by addition, all int64."""
        sums = {f"{part}.{name}": value for part, held in self._parts().items() for name, value in held.state().items()}
        return {**sums, "joined": self._joined.copy()}

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        for part, held in self._parts().items():
            held.merge({name: sums[f"{part}.{name}"] for name in held.state()})
        self._joined += sums["joined"].astype(np.int64)

    def _parts(self) -> dict[str, Any]:
        return {name: held for name, held in vars(self).items() if not name.startswith("_")}

    def compute(self) -> dict[str, float]:
        """The figures that the README describes; those for which the data has no true masks are missing."""
        measured = self.precision.compute()
        for part, names in {
            "regions": {"recall50": "region_recall"},
            "pooled": {"recall50": "uniap_region_recall", "recall": "uniap_ar"},
        }.items():
            found = self._parts()[part].compute()
            measured |= {new: found[old] for old, new in names.items() if old in found}
        if self._classed:
            measured |= self.semantic.compute()
        of = self.semantic.classes_of() if self._classed else np.zeros(1, np.int64)
        measured |= self.panoptic.compute(of)
        groups, joined = self._joined.tolist()
        return measured | ({"joined": joined / groups} if groups else {})


def true_segments(instances: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The true segments of an image for panoptic quality: numbers (h, w), −1 for void, and their classes (m,).

    Every object is a segment, of the class that most of its pixels have. Where classes are known, the pixels without an
    object make one segment for each class. Where they are not, nothing is known of these pixels, and they are void.
    """
    numbers, places = np.unique(instances, return_inverse=True)
    if classes is None:
        segments = np.where(numbers > 0, np.cumsum(numbers > 0) - 1, VOID)[places.reshape(instances.shape)]
        return segments, np.zeros(int((numbers > 0).sum()), np.int64)
    segments, kinds = np.full(instances.shape, VOID), list[int]()
    things = [(instances == number, _most(classes[instances == number])) for number in numbers if number > 0]
    stuff = (instances == 0) & (classes >= 0)
    things += [(stuff & (classes == kind), int(kind)) for kind in np.unique(classes[stuff])]
    for mask, kind in things:
        if kind >= 0:
            segments[mask] = len(kinds)
            kinds.append(kind)
    return segments, np.array(kinds, np.int64)


def _most(classes: np.ndarray) -> int:
    """The most frequent class of some pixels; −1 if none is labeled."""
    labeled = classes[classes >= 0]
    return int(np.bincount(labeled).argmax()) if len(labeled) else VOID
