"""PAT's batches of P identities with K images each, and their augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def identity_batches(
    labels: Sequence[int], identities: int, instances: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches of P identities with K images each; the next P are drawn among those with images left.

    An identity's images are shuffled and cut into groups of K, the remainder dropped; one with fewer than K images is
    drawn with replacement into a single group. A pass ends when fewer than P identities have a group left. Data of
    fewer than P identities use all of them.

    Args:
        labels: each sample's identity.
        identities: P.
        instances: K.
        generator: of the CPU.

    Yields:
        Indices (P·K,), image by image of one identity, then of the next.

    Source: Luo et al. 2019, arXiv 1903.07071; as in the release (``RandomIdentitySampler``).
    """
    members: dict[int, list[int]] = {}
    for position, identity in enumerate(labels):
        members.setdefault(identity, []).append(position)
    groups = {identity: _groups(torch.tensor(members[identity]), instances, generator) for identity in sorted(members)}
    count = min(identities, len(groups))
    while count and len(left := [identity for identity in groups if groups[identity]]) >= count:
        chosen = torch.randperm(len(left), generator=generator)[:count].tolist()
        yield torch.cat([groups[left[position]].pop(0) for position in chosen])


def _groups(members: Tensor, instances: int, generator: torch.Generator) -> list[Tensor]:
    if len(members) < instances:
        return [members[torch.randint(len(members), (instances,), generator=generator)]]
    shuffled = members[torch.randperm(len(members), generator=generator)]
    return [group for group in torch.split(shuffled, instances) if len(group) == instances]


def augment(
    images: Tensor, generator: torch.Generator, *, flip: float, pad: int, gray_patch: float, erase: float, fill: float
) -> Tensor:
    """Mirrored, shifted, partly gray or erased copies, drawn image by image.

    Args:
        images: (n, C, H, W), normalized.
        generator: of the CPU.
        flip: probability of a horizontal flip.
        pad: border in pixels, cropped to the old size at a random place.
        gray_patch: probability that a rectangle (2–40 % of the area, aspect 0.3–3.3) turns gray.
        erase: probability that such a rectangle is erased.
        fill: value of the border and of what is erased: black.
    """
    count, _, height, width = images.shape
    mirrored = torch.as_tensor(torch.rand(count, generator=generator) < flip, device=images.device)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if pad:
        padded = F.pad(images, (pad,) * 4, value=fill)
        corners = torch.randint(2 * pad + 1, (count, 2), generator=generator).tolist()
        images = torch.stack(
            [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, corners, strict=True)]
        )
    if gray_patch:
        inside = _rectangles(images, gray_patch, generator)
        images = torch.where(inside, _luma(images), images)
    if erase:
        images = images.masked_fill(_rectangles(images, erase, generator), fill)
    return images


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601 gray (n, 1, H, W); images of one channel as they are."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _rectangles(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """(n, 1, H, W), True inside a random rectangle of the images chosen with `probability`."""
    count, _, height, width = images.shape
    inside = torch.zeros(count, 1, height, width, dtype=torch.bool)
    for row, (chosen, area, aspect, y, x) in enumerate(torch.rand(count, 5, generator=generator).tolist()):
        if chosen < probability:
            pixels = (0.02 + 0.38 * area) * height * width
            ratio = 0.3 * (3.3 / 0.3) ** aspect
            tall = min(height, max(1, round(math.sqrt(pixels * ratio))))
            wide = min(width, max(1, round(math.sqrt(pixels / ratio))))
            top, left = int(y * (height - tall + 1)), int(x * (width - wide + 1))
            inside[row, :, top : top + tall, left : left + wide] = True
    return torch.as_tensor(inside, device=images.device)
