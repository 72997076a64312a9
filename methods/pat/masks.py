"""Which token may attend to which: rectangles of the parts and the attention mask they make."""

from __future__ import annotations

import torch
from torch import Tensor

PARTS = 3
Grid = tuple[int, int]  # rows and columns of patches
Rectangle = tuple[int, int, int, int]  # top, bottom, left, right: rows and columns of patches, all inclusive


def full_bands(grid: Grid) -> tuple[Rectangle, ...]:
    """The upper, middle and lower half of the grid, full width: what the parts see in evaluation."""
    height, width = grid
    return tuple((top, top + height // 2 - 1, 0, width - 1) for top in _tops(height))


def draw_rectangles(grid: Grid, generator: torch.Generator) -> tuple[Rectangle, ...]:
    """A random rectangle in the band of each part, redrawn for every forward pass of training.

    Columns are two distinct numbers of 0…width, rows two of top…top + height/2, both ends inclusive: a rectangle may
    reach one row below its band, and what lies outside the grid does not exist.

    Args:
        grid: rows and columns of patches.
        generator: of the CPU.
    """
    height, width = grid
    drawn = []
    for top in _tops(height):
        left, right = _two_of(width + 1, generator)
        upper, lower = _two_of(height // 2 + 1, generator)
        drawn.append((top + upper, min(top + lower, height - 1), left, min(right, width - 1)))
    return tuple(drawn)


def attention_mask(rectangles: tuple[Rectangle, ...], grid: Grid, device: torch.device | str | None = None) -> Tensor:
    """Mask (N, N) over the tokens [cls, parts, patches row by row]; True where a row's token sees a column's.

    cls and patches see each other. Part k, cls and the patches of rectangle k see each other, in both directions. Parts
    never see each other.

    Args:
        rectangles: one per part; none leaves an ordinary ViT's mask, all True.
        grid: rows and columns of patches.
        device: where the mask is made.

    Source: Ni et al. 2023, arXiv 2308.03322, section 3 (part-aware attention), as released.
    """
    height, width = grid
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)
    first = 1 + len(rectangles)
    common = torch.ones(first + height * width, dtype=torch.bool, device=device)
    common[1:first] = False
    mask = common[:, None] & common
    for part, (top, bottom, left, right) in enumerate(rectangles, start=1):
        inside = (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
        together = torch.zeros_like(common)
        together[0] = together[part] = True
        together[first:] = inside.flatten()
        mask |= together[:, None] & together
    return mask


def _tops(height: int) -> tuple[int, ...]:
    return tuple(part * height // 4 for part in range(PARTS))


def _two_of(count: int, generator: torch.Generator) -> tuple[int, int]:
    low, high = sorted(torch.randperm(count, generator=generator)[:2].tolist())
    return low, high
