"""Masks over grids of patches, for masked modeling with mask tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_ATTEMPTS = 10
_LONGEST = math.log(1 / 0.3)  # logarithm of the largest ratio of the sides


def block_masks(
    samples: int,
    grid: tuple[int, int],
    generator: torch.Generator,
    *,
    masked: float = 0.5,
    share: tuple[float, float] = (0.1, 0.5),
    smallest: int = 4,
) -> Tensor:
    """Draw masks of random rectangles for a part of the samples; the others have empty masks.

    Exactly ⌊masked · n⌋ samples are masked. The interval `share` is cut into as many equal parts, and the share of
    patches that is asked for in each of these samples is drawn from a part of its own, so that a batch always holds
    small and large masks. See `block_mask`.

    Args:
        samples: n.
        grid: rows and columns of patches.
        generator: a CPU generator.
        masked: share of the samples that are masked.
        share: smallest and largest share of a sample's patches.
        smallest: least area of a rectangle, as long as so many patches are left to mask.

    Returns:
        (n, rows, columns) truth values on the CPU, true for masked patches.

    Source: Zhou et al. 2022, arXiv 2111.07832 (iBOT); the parts of the interval as in Oquab et al. 2023,
    arXiv 2304.07193.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    chosen, patches = rng.permutation(samples)[: int(masked * samples)], grid[0] * grid[1]
    bounds = np.linspace(*share, len(chosen) + 1)
    masks = np.zeros((samples, *grid), bool)
    for sample, low, high in zip(chosen, bounds[:-1], bounds[1:], strict=True):
        masks[sample] = block_mask(grid, int(patches * rng.uniform(low, high)), rng, smallest=smallest)
    return torch.from_numpy(masks)


def block_mask(grid: tuple[int, int], count: int, rng: np.random.Generator, *, smallest: int = 4) -> np.ndarray:
    """Draw random rectangles until they cover `count` patches, or until ten attempts in a row do not fit.

    A rectangle has an area drawn uniformly between `smallest` and the number of patches that are left to mask, and a
    ratio of height to width between 0.3 and 1 / 0.3, uniform in the logarithm. It fits if it is smaller than the grid
    in both directions, and if it covers at least one new patch and no more than are left. So never more than `count`
    patches are masked, and often a few less.

    Args:
        grid: rows and columns of patches.
        count: number of patches to mask.
        rng: the generator.
        smallest: least area of a rectangle, as long as so many patches are left to mask.

    Returns:
        (rows, columns) truth values.

    Source: Bao et al. 2021, arXiv 2106.08254 (BEiT), Algorithm 1, as in the code of iBOT and DINOv2.
    """
    rows, columns = grid
    mask, left, failed = np.zeros(grid, bool), count, 0
    while left > 0 and failed < _ATTEMPTS:
        area = rng.uniform(min(smallest, left), max(smallest, left))
        aspect = math.exp(rng.uniform(-_LONGEST, _LONGEST))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        failed += 1
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, start = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        part = mask[top : top + height, start : start + width]
        new = part.size - int(np.count_nonzero(part))
        if 0 < new <= left:
            part[:] = True
            left, failed = left - new, 0
    return mask
