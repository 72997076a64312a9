"""Views of point clouds: noise, crops by balls, scale, shift, rotation, completion to one size, farthest points.

All functions take a batch of clouds (n, N, 3) and draw from a given generator on the CPU, so that equal seeds give the
same draws on every device. The clouds that go in are not changed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NEIGHBORS = 4  # a point and its three nearest neighbors


def jitter(clouds: Tensor, generator: torch.Generator, deviation: float = 0.01, limit: float = 0.05) -> Tensor:
    """Move every coordinate by Gaussian noise of this standard deviation, clipped to ± `limit`."""
    noise = torch.randn(clouds.shape, generator=generator) * deviation
    return clouds + _beside(noise.clamp(-limit, limit), clouds)


def scale(clouds: Tensor, generator: torch.Generator, low: float = 2 / 3, high: float = 3 / 2) -> Tensor:
    """Multiply each axis of each cloud by a factor from U(`low`, `high`)."""
    return clouds * _beside(_uniform((len(clouds), 1, 3), low, high, generator), clouds)


def shift(clouds: Tensor, generator: torch.Generator, most: float = 0.2) -> Tensor:
    """Move each cloud along each axis by a distance from U(−`most`, `most`)."""
    return clouds + _beside(_uniform((len(clouds), 1, 3), -most, most, generator), clouds)


def rotate(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each cloud about the origin, uniformly over all rotations.

    The rotation is the unit quaternion of a Gaussian vector in four dimensions.
    """
    q = torch.randn((len(clouds), 4), generator=generator, dtype=torch.float64)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    matrices = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    return clouds @ _beside(matrices.to(clouds.dtype), clouds).transpose(1, 2)


def rotate_up(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each cloud about the third axis by a uniform angle."""
    angle = _beside(_uniform((len(clouds),), 0.0, 2 * math.pi, generator), clouds)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = ((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))
    matrices = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    return clouds @ matrices.transpose(1, 2)


def shuffle(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Give the points of each cloud a random order."""
    order = torch.rand(clouds.shape[:2], generator=generator).argsort(dim=1)
    return taken(clouds, _beside(order, clouds))


def subset(clouds: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Take `size` random points of each cloud, in random order: (n, size, 3)."""
    order = torch.rand(clouds.shape[:2], generator=generator).argsort(dim=1)[:, :size]
    return taken(clouds, _beside(order, clouds))


def ball_crop(clouds: Tensor, low: float, high: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keep the part of each cloud that lies in a ball around one of its points.

    The center is a random point of the cloud. With r from U(`low`, `high`), the ⌈r N⌉ points nearest to it are kept,
    among them the center itself, from the nearest to the farthest.

    Args:
        clouds: (n, N, 3).
        low: smallest share r of the points that is kept.
        high: largest share.
        generator: draws centers and shares.

    Returns:
        Points (n, M, 3), M being the largest number that is kept, and the number of points kept of each cloud, (n,).
        What lies behind that number in a row has no meaning.
    """
    n, total = clouds.shape[:2]
    center = _beside(torch.randint(total, (n, 1), generator=generator), clouds)
    share = _uniform((n,), low, high, generator, torch.float64)
    count = torch.ceil(share * total).long().clamp(1, total)
    distance = torch.cdist(taken(clouds, center), clouds)[:, 0]
    distance.scatter_(1, center, -1.0)  # the center stays first even where other points coincide with it
    nearest = distance.argsort(dim=1)[:, : int(count.max())]
    return taken(clouds, nearest), _beside(count, clouds)


def complete(points: Tensor, count: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Bring clouds with different numbers of points to one size.

    While a cloud has too few points, means of a point and its three nearest neighbors are appended; each point is used
    at most once in a pass. Of a cloud with too many points, a random subset is kept. Points are never just repeated,
    because neighbors at distance zero would change every graph of nearest neighbors.

    Args:
        points: (n, M, 3), of which the first `count` of each row are the cloud.
        count: (n,), at least 1 each.
        size: number of points of each cloud that is returned.
        generator: draws which points are used, and which are kept.

    Returns:
        (n, size, 3).
    """
    cloud, has = points, count.clone()
    while bool((has < size).any()):
        room = int(has.max())
        cloud, at = cloud[:, :room], torch.arange(room, device=points.device)
        inside = at < has[:, None]
        added = torch.minimum(has, (size - has).clamp(min=0))
        most = int(added.max())
        used = taken(cloud, _random_first(inside, generator)[:, :most])
        distance = torch.cdist(used, cloud).masked_fill(~inside[:, None], torch.inf)
        near, which = distance.topk(min(_NEIGHBORS, room), dim=2, largest=False)
        weight = torch.isfinite(near).to(cloud.dtype)[..., None]
        around = taken(cloud, which.flatten(1)).reshape(*which.shape, 3)
        means = (around * weight).sum(2) / weight.sum(2).clamp(min=1)
        new = torch.arange(most, device=points.device)
        # what is not added goes to a spare place behind all others
        target = torch.where(new < added[:, None], has[:, None] + new, room + most)
        cloud = torch.cat([cloud, torch.zeros_like(cloud[:, :1]).expand(-1, most + 1, -1)], dim=1)
        cloud = cloud.scatter(1, target[..., None].expand_as(means), means)
        has = has + added
    if not bool((has > size).any()):
        return cloud[:, :size]
    at = torch.arange(cloud.shape[1], device=points.device)
    keep = torch.where((has > size)[:, None], _random_first(at < has[:, None], generator), at)
    return taken(cloud, keep[:, :size])


def farthest_points(clouds: Tensor, size: int) -> Tensor:
    """Farthest point sampling: indices (n, size), of which the first is 0.

    Each further point is the one whose distance to the nearest point chosen so far is largest; of several the first.

    Raises:
        ValueError: clouds of fewer than `size` points.

    Source: Qi et al. 2017, arXiv 1706.02413, section 3.2.
    """
    if clouds.shape[1] < size:
        raise ValueError(f"clouds of {clouds.shape[1]} points have no {size} farthest points")
    chosen = torch.zeros(len(clouds), size, dtype=torch.long, device=clouds.device)
    nearest = torch.full(clouds.shape[:2], torch.inf, device=clouds.device, dtype=clouds.dtype)
    for index in range(1, size):
        last = taken(clouds, chosen[:, index - 1 : index])
        nearest = torch.minimum(nearest, (clouds - last).square().sum(2))
        chosen[:, index] = nearest.argmax(1)
    return chosen


def taken(clouds: Tensor, indices: Tensor) -> Tensor:
    """Points (n, k, d) at the `indices` (n, k) of clouds (n, N, d)."""
    return clouds.gather(1, indices[..., None].expand(-1, -1, clouds.shape[2]))


def _random_first(inside: Tensor, generator: torch.Generator) -> Tensor:
    """Indices (n, M) of each row: those where `inside` is true, in random order, then the others."""
    keys = _beside(torch.rand(inside.shape, generator=generator), inside)
    return keys.masked_fill(~inside, 2.0).argsort(dim=1)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)


def _beside(drawn: Tensor, other: Tensor) -> Tensor:
    """A tensor that was drawn on the CPU, on the device of `other`."""
    return torch.as_tensor(drawn, device=other.device)
