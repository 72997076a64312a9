"""Regions that teach, and the queries that are matched with them (§3.3, steps 1 and 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.mask_matching import assigned, dice_table
from fedlab.distill.uniap import Regions, uniap
from fedlab.distill.views import Views
from fedlab.methods.s2_uniseg.networks import Pyramid
from fedlab.methods.s2_uniseg.settings import KINDS, S2UniSegSettings
from fedlab.methods.s2_uniseg.views import cropped_masks


class Pairs(NamedTuple):
    """P matched pairs of a query and a region.

    Args:
        views: (P,) number of the view.
        queries: (P,) number of the query among all queries of a view.
        regions: (P,) number of the region.
        masks: (P, h, w) truth values, the region in the view.
    """

    views: Tensor
    queries: Tensor
    regions: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.queries)


@torch.no_grad()
def regions_of(s: S2UniSegSettings, pyramid: Pyramid) -> Regions:
    """What UniAP finds in the finest maps; without semantic pooling, the instances, for both kinds of queries."""
    maps, side = pyramid[0].float(), s.pooling.side
    size = (min(side, maps.shape[2]), min(side, maps.shape[3]))
    if maps.shape[2:] != size:
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)
    found = uniap(maps, s.pooling.pooling)
    if s.semantic_pooling:
        return found
    instances = found.chosen(~found.semantic)
    twice = Regions(*(torch.cat([values, values]) for values in instances))
    return twice._replace(semantic=torch.arange(len(twice.semantic), device=maps.device) >= len(instances.semantic))


@torch.no_grad()
def matched(s: S2UniSegSettings, regions: Regions, images: int, views: Views, logits: Tensor) -> Pairs:
    """Pairs of queries and regions of the same kind, in every view on its own, that maximize the sum of Dice.

    Regions that a view does not show are left out. Nothing but Dice counts, neither features nor codes.

    Args:
        s: settings.
        regions: of the images.
        images: their number B.
        views: V views, of which view v is of image v mod B.
        logits: of the masks of all queries, (V, Q, h, w), [INS] queries first.
    """
    size, first = (logits.shape[2], logits.shape[3]), (0, s.decoder.instances, logits.shape[1])
    made: list[Pairs] = []
    for view, masks in enumerate(logits.float().sigmoid()):
        rows = (regions.images == view % images).nonzero()[:, 0]
        shown = cropped_masks(regions.masks[rows], views, view, size)
        seen = shown.flatten(1).any(1)
        for kind, _ in enumerate(KINDS):
            chosen = (seen & (regions.semantic[rows] == bool(kind))).nonzero()[:, 0]
            queries, columns = assigned(1 - dice_table(masks[first[kind] : first[kind + 1]], shown[chosen]))
            places = chosen[columns]
            found = torch.full_like(queries, view), queries + first[kind], rows[places], shown[places]
            made.append(Pairs(*found))
    return Pairs(*(torch.cat(parts) for parts in zip(*made, strict=True)))
