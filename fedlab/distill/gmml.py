"""Group masked model learning: connected blocks of pixels are set to zero or replaced by those of another sample.

Blocks need not be aligned with a transformer's patches. There is no mask token: the network sees all pixels, and those
in the blocks are corrupted.

Source: Atito et al. 2021, arXiv 2111.00955 (GMML), as used by ASiT, arXiv 2211.13189.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

_DRAWN = 32  # number of blocks drawn at a time


class Corruption(NamedTuple):
    """How each of n samples is corrupted.

    Args:
        mask: (n, H, W) truth values, the corrupted pixels; images have the same mask in all channels.
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
    """Draw for each sample its blocks and, with equal probability, whether they become zero or are replaced.

    Args:
        samples: n.
        size: (H, W).
        generator: a CPU generator.
        drop: if a sample's blocks become zero, they cover at least a share of it drawn from U(min(0.5, drop), drop).
        replace: if they are replaced, they cover at least a share drawn from U(min(0.5, replace), replace).
        block: the height of a block is below ``block · H`` and its width below ``block · W``, but at least `align`.
        align: positions and sizes of blocks are multiples of this number of pixels.

    Returns:
        Tensors on the CPU.
    """
    # NumPy draws a single integer ten times faster than torch, and a mask needs hundreds
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    replaced, partner = rng.random(samples) < 0.5, rng.integers(samples, size=samples)
    most = np.where(replaced, replace, drop)
    shares = rng.uniform(np.minimum(0.5, most), most)
    masks = np.stack([block_mask(size, share, rng, block=block, align=align) for share in shares])
    return Corruption(torch.from_numpy(masks), torch.from_numpy(replaced), torch.from_numpy(partner))


def block_mask(
    size: tuple[int, int], share: float, rng: np.random.Generator, *, block: float = 0.3, align: int = 1
) -> np.ndarray:
    """Draw random rectangles, one after the other, until their union covers `share` of the pixels.

    The top left corner is uniform over [0, H − align) × [0, W − align), as in the authors' code: no block starts in the
    last row or column, except on maps so small that no block would reach these. Height and width are uniform integers
    in [align, ⌊block · H⌋) and [align, ⌊block · W⌋), or `align` if such a range is empty. They are cut off at the
    border. All positions and sizes are then rounded to multiples of `align`.

    Args:
        size: (H, W).
        share: share of the pixels, in [0, 1].
        rng: the generator.
        block: largest height and width of a block, as shares of H and W.
        align: positions and sizes are multiples of this number of pixels.

    Returns:
        (H, W) truth values.
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
    """Number of positions along a side from which a block's corner is drawn, if blocks are shorter than `longest`."""
    last = (side - align - 1) // align * align
    reach = last + round(min(longest - 1, side - last) / align) * align
    # if no block reached the last row, a large share could never be covered
    return side - align if last >= 0 and reach >= side else side - align + 1


def untouched(samples: int, size: tuple[int, int]) -> Corruption:
    """The corruption of n samples that changes nothing; for ablations."""
    return Corruption(
        torch.zeros(samples, *size, dtype=torch.bool), torch.zeros(samples, dtype=torch.bool), torch.arange(samples)
    )


def joined(parts: Sequence[Corruption]) -> Corruption:
    """The corruption of several views one below the other, where every sample keeps its partner within its own view."""
    firsts = [sum(len(part.partner) for part in parts[:index]) for index in range(len(parts))]
    return Corruption(
        torch.cat([part.mask for part in parts]),
        torch.cat([part.replaced for part in parts]),
        torch.cat([part.partner + first for part, first in zip(parts, firsts, strict=True)]),
    )


def apply(clean: Tensor, corruption: Corruption) -> Tensor:
    """The corrupted samples, of the shape of `clean`. All channels of an image are corrupted at the same places.

    Args:
        clean: (n, H, W) or (n, C, H, W). Replaced pixels are those of the partner, uncorrupted, at the same place.
        corruption: of n samples of H × W pixels, on the device of `clean`.

    Raises:
        ValueError: the corruption is of another number of samples or of another size.
    """
    mask, replaced, partner = corruption
    rows = replaced.reshape(-1, *(1,) * (clean.ndim - 1))
    return torch.where(_over(mask, clean), torch.where(rows, clean[partner], 0.0), clean)


def reconstruction_loss(
    reconstruction: Tensor, clean: Tensor, mask: Tensor, error: Literal["l1", "squared"] = "l1"
) -> Tensor:
    """Mean |x̂ − x|, or (x̂ − x)², over all corrupted values of the batch together; 0 where none is.

    Args:
        reconstruction: x̂, (n, H, W) or (n, C, H, W).
        clean: x, likewise.
        mask: (n, H, W) truth values, the corrupted pixels.
        error: of a value.

    Returns:
        A scalar.

    Raises:
        ValueError: the mask is of another number of samples or of another size.

    Source: Atito et al. 2021, arXiv 2104.03602, Eq. 1.
    """
    differences = reconstruction.float() - clean
    errors = differences.abs() if error == "l1" else differences.square()
    counted = _over(mask, errors).expand_as(errors)
    return torch.where(counted, errors, 0.0).sum() / counted.sum().clamp(min=1)


def _over(mask: Tensor, samples: Tensor) -> Tensor:
    """A mask (n, H, W) with an axis for the channels of the samples, if they have channels."""
    if samples.ndim not in (3, 4) or mask.shape != (len(samples), *samples.shape[-2:]):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit samples of shape {tuple(samples.shape)}")
    return mask[:, None] if samples.ndim == 4 else mask
