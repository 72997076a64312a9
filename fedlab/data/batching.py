"""Samplers for local training: what ``BatchSpec.sampler`` may be, beside all samples in shuffled order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def whole_batches(columns: Mapping[str, Tensor], batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled batches without the incomplete last one, which would be too small for statistics over the batch.

    Fewer samples than a batch make one batch of all of them.

    Args:
        columns: of the client, one row a sample.
        batch_size: B.
        generator: of the CPU.

    Yields:
        Indices (B,).
    """
    order = torch.randperm(_rows(columns), generator=generator)
    if 0 < len(order) < batch_size:
        yield order
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def balanced_batches(columns: Mapping[str, Tensor], batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """As many samples as there are, with replacement, each as likely as the sum of 1 / (size of its class).

    Args:
        columns: of the client, with ``tags`` (n, K) or ``label`` (n,). Samples without any class are never drawn,
            unless no sample has a class: then all are equally likely.
        batch_size: B; the last batch may be smaller.
        generator: of the CPU.

    Yields:
        Indices (B,).

    Source: Gong et al. 2021, arXiv 2104.01778 (AST).
    """
    tags = columns["tags"].double() if "tags" in columns else F.one_hot(columns["label"]).double()
    likely = (tags / tags.sum(0).clamp(min=1)).sum(1)
    if not likely.any():
        likely = torch.ones_like(likely)
    drawn = torch.multinomial(torch.as_tensor(likely, device="cpu"), len(likely), True, generator=generator)
    yield from torch.split(drawn, batch_size)


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


def _rows(columns: Mapping[str, Tensor]) -> int:
    return len(next(iter(columns.values())))
