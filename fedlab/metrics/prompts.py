"""Objects of an instance mask at the resolution of patches, and the points by which a user would name them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

VOID = -1
Grid = tuple[int, int]


@dataclass(frozen=True)
class PromptedObject:
    """An object and the patches that prompt it.

    Args:
        number: of the object in its mask.
        pixels: (h, w) truth values.
        patches: (N,) truth values: more than half of the patch's pixels are the object's.
        innermost: index of the patch with the innermost pixel, which lies farthest from everything that is not the
            object, the picture's border included; of several such pixels, the middle one.
        random: indices of the patches with random pixels.
    """

    number: int
    pixels: np.ndarray
    patches: np.ndarray
    innermost: int
    random: np.ndarray


def regions_of(instances: np.ndarray, grid: Grid) -> np.ndarray:
    """What each patch belongs to: (n, N) numbers of objects, 0 for background, −1 where nothing has the majority.

    Args:
        instances: (n, h, w) numbers of objects, 0 for background and −1 for void.
        grid: (rows, columns) of N patches; h and w are multiples of them.

    Raises:
        ValueError: the mask does not divide into the patches.
    """
    blocks = _blocks(instances, grid)
    values = np.sort(blocks.reshape(*blocks.shape[:2], -1), axis=2)
    # a value that fills more than half of a sorted row is in its middle
    middle: np.ndarray = values[:, :, (values.shape[2] - 1) // 2].astype(np.int64)
    majority = (values == middle[:, :, None]).mean(axis=2) > 0.5
    return np.where(majority, middle, VOID)


def prompted_objects(instances: np.ndarray, grid: Grid, points: int) -> Iterator[PromptedObject | None]:
    """The objects of one mask; None for an object without a patch that is more than half its own.

    Random points are uniform over the object's pixels in such patches. They depend only on the object's pixels, so that
    neither the order of the samples nor the numbering of the objects matters.

    Args:
        instances: (h, w) numbers of objects, 0 for background and −1 for void.
        grid: (rows, columns) of the patches.
        points: number of random points.
    """
    from scipy.ndimage import distance_transform_edt

    regions = regions_of(instances[None], grid)[0]
    side = instances.shape[0] // grid[0], instances.shape[1] // grid[1]
    for number in np.unique(instances[instances > 0]).tolist():
        patches = regions == number
        if not patches.any():
            yield None
            continue
        pixels = instances == number
        promptable = pixels & patches.reshape(grid).repeat(side[0], axis=0).repeat(side[1], axis=1)
        depth = distance_transform_edt(np.pad(pixels, 1))[1:-1, 1:-1]
        places = np.flatnonzero(promptable)
        drawn = hashlib.blake2b(np.packbits(pixels).tobytes(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(drawn, "little"))
        deepest = places[depth.ravel()[places] == depth.ravel()[places].max()]
        # the middle one of several, since the first would lie at the object's upper end
        chosen = np.append(rng.choice(places, points), deepest[(len(deepest) - 1) // 2])
        rows, columns = np.unravel_index(chosen, pixels.shape)
        at = rows // side[0] * grid[1] + columns // side[1]
        yield PromptedObject(number, pixels, patches, int(at[-1]), at[:-1])


def _blocks(instances: np.ndarray, grid: Grid) -> np.ndarray:
    """(n, N, pixels down, pixels across) of each patch."""
    n, height, width = instances.shape
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"a mask of {height} × {width} pixels does not divide into {grid[0]} × {grid[1]} patches")
    parts = instances.reshape(n, grid[0], height // grid[0], grid[1], width // grid[1]).transpose(0, 1, 3, 2, 4)
    return parts.reshape(n, grid[0] * grid[1], height // grid[0], width // grid[1])


def divisible(instances: Tensor, grid: Grid) -> Tensor:
    """Masks (n, h, w) whose size is a multiple of a grid of patches, resized by nearest neighbor where it is not."""
    size = tuple(max(1, round(side / count)) * count for side, count in zip(instances.shape[1:], grid, strict=True))
    if size == tuple(instances.shape[1:]):
        return instances
    resized = F.interpolate(instances[:, None].double(), size=size, mode="nearest-exact")[:, 0]
    return resized.to(instances.dtype)
