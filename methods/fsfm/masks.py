"""Which patches of a face are hidden: one region wholly, and all other regions in proportion (CRFR-P, §3.2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedlab.data.regions import (
    BACKGROUND,
    HAIR,
    INNER_MOUTH,
    LEFT_BROW,
    LEFT_EYE,
    LOWER_LIP,
    NOSE,
    REGIONS,
    RIGHT_BROW,
    RIGHT_EYE,
    SKIN,
    UPPER_LIP,
)

Masking = Literal["crfr_p", "crfr_r", "frp", "random"]
GROUPS = ("brows", "eyes", "nose", "mouth", "boundary", "hair", "skin", "background")
"""Names of the groups of regions, in the order in which patches are counted for them."""
COVERABLE = 6
"""Only the first six groups are ever covered wholly: never the skin or the background."""
_CLASSES = {
    "brows": (RIGHT_BROW, LEFT_BROW),
    "eyes": (RIGHT_EYE, LEFT_EYE),
    "nose": (NOSE,),
    "mouth": (UPPER_LIP, INNER_MOUTH, LOWER_LIP),
    "hair": (HAIR,),
    "skin": (SKIN,),
    "background": (BACKGROUND,),
}


class Masks(NamedTuple):
    """The hidden patches of B faces.

    Args:
        masked: M, (B, N) truth values; every face has the same number of them.
        region: M_fr, (B, N) truth values, those of the covered region; always a part of `masked`.
    """

    masked: Tensor
    region: Tensor

    @property
    def visible(self) -> Tensor:
        """The numbers of the patches that are seen, ascending, (B, N − T)."""
        return (~self.masked).nonzero()[:, 1].reshape(len(self.masked), -1)


def patch_groups(regions: Tensor, patch: int) -> Tensor:
    """Which groups of regions occur in each patch. One pixel is enough, so a patch can belong to several.

    Args:
        regions: (B, H, W) integers, the classes of `fedlab.data.regions.REGIONS`; H and W are multiples of `patch`.
        patch: height and width of a patch.

    Returns:
        (B, 8, N) truth values in the order of `GROUPS`; patches row by row. The boundary is where skin meets hair or
        background within one patch.
    """
    count, height, width = regions.shape
    tiles = (
        regions.reshape(count, height // patch, patch, width // patch, patch).transpose(2, 3).flatten(3).flatten(1, 2)
    )
    there = [(tiles == number).any(dim=2) for number in range(len(REGIONS))]
    groups = {name: torch.stack([there[number] for number in numbers]).any(0) for name, numbers in _CLASSES.items()}
    groups["boundary"] = there[SKIN] & (there[HAIR] | there[BACKGROUND])
    return torch.stack([groups[name] for name in GROUPS], dim=1)


def draw_masks(
    groups: Tensor,
    total: int,
    generator: torch.Generator,
    *,
    masking: Masking = "crfr_p",
    one_region: bool = False,
    covered: int | None = None,
) -> Masks:
    """Draw which patches are hidden.

    Args:
        groups: (B, 8, N) truth values as `patch_groups` returns them.
        total: T, the number of hidden patches of every face.
        generator: of the CPU.
        masking: ``crfr_p`` covers one region and hides all others in proportion. The ablations: ``crfr_r`` covers one
            region and hides random patches of the rest; ``frp`` hides all regions in proportion and covers none;
            ``random`` hides random patches, as a masked autoencoder does.
        one_region: whether all faces of the batch have the same region covered.
        covered: number of the covered group; default: one of the first six is drawn for each face, or for the batch.

    Returns:
        Exactly T hidden patches of every face, on the device of the groups. M_fr is empty where a face lacks the
        region, or with the last two.
    """
    device, groups = groups.device, torch.as_tensor(groups, device="cpu")
    count, _, size = groups.shape
    drawn = torch.randint(COVERABLE, (1 if one_region else count,), generator=generator).expand(count)
    chosen = drawn if covered is None else torch.full((count,), covered)
    region = groups[torch.arange(count), chosen]
    parts = groups
    if masking in ("frp", "random"):
        region = torch.zeros_like(region)
    if masking in ("crfr_r", "random"):
        parts = torch.ones(count, 1, size, dtype=torch.bool)
    return Masks(*(torch.as_tensor(part, device=device) for part in _completed(region, parts, total, generator)))


def _completed(region: Tensor, parts: Tensor, total: int, generator: torch.Generator) -> Masks:
    """Hide a region, and the same share ρ of every other part, so that T patches are hidden in all.

    A patch of several parts counts for the first of them. Rounding is repaired by random patches that are not of the
    region. Where the region alone has more than T patches, random ones of it are shown again and leave M_fr.
    """
    count, _, size = parts.shape
    keys, repairs = torch.rand(2, count, size, generator=generator)
    need = total - region.sum(dim=1)
    share = need.clamp(min=0).double() / (size - region.sum(dim=1)).clamp(min=1)
    masked, used = region.clone(), region.clone()
    for part in parts.unbind(dim=1):
        candidates = part & ~used
        masked |= _chosen(candidates, (candidates.sum(dim=1) * share).round(), keys)
        used |= candidates
    missing = total - masked.sum(dim=1)
    masked |= _chosen(~masked, missing, repairs)
    masked &= ~_chosen(masked & ~region, -missing, repairs)
    shown = _chosen(region, -need, repairs)
    return Masks(masked & ~shown, region & ~shown)


def _chosen(candidates: Tensor, wanted: Tensor, keys: Tensor) -> Tensor:
    """Truth values (B, N): of each row, so many candidates with the smallest keys; none for a number below 1."""
    ranks = keys.masked_fill(~candidates, 2.0).argsort(dim=1).argsort(dim=1)
    return candidates & (ranks < wanted[:, None])
