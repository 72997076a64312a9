"""Group masked model learning: connected blocks of pixels are zeroed or come from another sample.

Atito et al. 2021, arXiv 2111.00955 (GMML); as used by ASiT, arXiv 2211.13189. Blocks need not be aligned with a
transformer's patches, and no mask token exists: the network sees every pixel, some of them wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_DRAWN = 32  # blocks at a time


class Corruption(NamedTuple):
    """How each of n samples is corrupted.

    Args:
        mask: (n, H, W) truth values, the corrupted pixels.
        replaced: (n,) truth values; if true, the corrupted pixels come from another sample, otherwise they become 0.
        partner: (n,) index of that other sample, possibly the sample itself.
    """

    mask: Tensor
    replaced: Tensor
    partner: Tensor


def draw(
    samples: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    drop: float = 0.7,
    replace: float = 0.3,
    block: float = 0.3,
    align: int = 1,
) -> Corruption:
    """Zero or replacement by a fair coin for each sample, and the blocks.

    Args:
        samples: n.
        size: (H, W).
        generator: on the CPU.
        drop: blocks of a zeroed sample cover at least a share drawn from U(min(0.5, drop), drop).
        replace: the same for a replaced sample.
        block: a block's height is below ``block · H``, its width below ``block · W``.
        align: positions and sizes are multiples of it.

    Returns:
        Tensors on the CPU.
    """
    # NumPy draws a single integer ten times faster than torch, and a mask takes hundreds
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    replaced, partner = rng.random(samples) < 0.5, rng.integers(samples, size=samples)
    most = np.where(replaced, replace, drop)
    shares = rng.uniform(np.minimum(0.5, most), most)
    masks = np.stack([block_mask(size, share, rng, block=block, align=align) for share in shares])
    return Corruption(torch.from_numpy(masks), torch.from_numpy(replaced), torch.from_numpy(partner))


def block_mask(
    size: tuple[int, int], share: float, rng: np.random.Generator, *, block: float = 0.3, align: int = 1
) -> np.ndarray:
    """Random rectangles, one after the other, until their union covers `share` of the pixels: (H, W) truth values.

    The top left corner is uniform over [0, H − align) × [0, W − align), as released: no block starts in the last row or
    column, except on maps so small that no block would reach those. Height and width are uniform integers in
    [align, ⌊block · H⌋) and [align, ⌊block · W⌋), cut off at the border.
    """
    height, width = size
    highest, widest = (max(int(block * side), align + 1) for side in size)
    rows, columns = _corners(height, highest, align), _corners(width, widest, align)
    mask, covered = np.zeros(size, bool), 0
    while True:
        tops = rng.integers(0, rows, _DRAWN) // align * align
        lefts = rng.integers(0, columns, _DRAWN) // align * align
        bottoms = tops + np.rint(np.minimum(rng.integers(align, highest, _DRAWN), height - tops) / align) * align
        rights = lefts + np.rint(np.minimum(rng.integers(align, widest, _DRAWN), width - lefts) / align) * align
        # plain integers index much faster than NumPy's
        for top, bottom, left, right in np.stack([tops, bottoms, lefts, rights], axis=1).astype(int).tolist():
            if covered >= share * height * width:
                return mask
            part = mask[top:bottom, left:right]
            covered += part.size - int(np.count_nonzero(part))
            part[:] = True


def _corners(side: int, longest: int, align: int) -> int:
    """How many corners are drawn from along a side, blocks being shorter than `longest`."""
    last = (side - align - 1) // align * align
    reach = last + round(min(longest - 1, side - last) / align) * align
    # a last row that no block reaches would leave a large share uncovered for ever
    return side - align if last >= 0 and reach >= side else side - align + 1


def apply(clean: Tensor, corruption: Corruption) -> Tensor:
    """The corrupted samples, (n, H, W).

    Args:
        clean: (n, H, W); replacements come from the clean partner, at the same place.
        corruption: on the device of `clean`.
    """
    mask, replaced, partner = corruption
    return torch.where(mask, torch.where(replaced[:, None, None], clean[partner], 0.0), clean)
