"""Which patches the student sees: the redundant ones are dropped, stage by stage (§3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedlab.distill.directions import directions
from fedlab.distill.precision import full_precision

Schedule = Literal["progressive", "upfront"]


class Drop(NamedTuple):
    """Patches that survive before one block of the student.

    Args:
        block: number of the block before which others are dropped, from 0.
        chosen: (n, k), positions of the survivors among those that were there before, in rising order.
        kept: (n, k), the same survivors as numbers of patches of the whole image, in rising order.
    """

    block: int
    chosen: Tensor
    kept: Tensor


@torch.no_grad()
def redundancy(tokens: Tensor) -> Tensor:
    """r_j = mean over k ≠ j of cos(t_j, t_k): how much a patch is like the others. A single patch has 0.

    Args:
        tokens: patch tokens, without the class token, (n, m, D).

    Returns:
        (n, m).
    """
    with full_precision(tokens) as (exact,):
        units = directions(exact)
        cosines = units @ units.transpose(1, 2)
        others = cosines.sum(-1) - cosines.diagonal(dim1=1, dim2=2)
        return others / max(1, tokens.shape[1] - 1)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` lowest scores of each row (n, m), in rising order; of equal scores the first ones."""
    return scores.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def surviving(patches: int, share: float, stages: int) -> list[int]:
    """The number of patches after each of the stages: round(share · what is left), and at least one."""
    counts = []
    for _ in range(stages):
        patches = max(1, round(share * patches))
        counts.append(patches)
    return counts


@torch.no_grad()
def drops(
    blocks: Sequence[int],
    counts: Sequence[int],
    scores: Callable[[int, Tensor | None], Tensor],
    schedule: Schedule = "progressive",
) -> list[Drop]:
    """Choose the survivors of every stage, each among those of the stage before.

    Args:
        blocks: the student's blocks before which patches are dropped, from 0, in rising order.
        counts: the number of survivors of each stage.
        scores: maps a block and the numbers (n, m) of the patches that are still there, None for all, to their scores
            (n, m), of which the lowest survive.
        schedule: ``progressive`` drops patches at every stage; ``upfront`` drops all of them before the first block.
    """
    found: list[Drop] = []
    kept: Tensor | None = None
    for block, count in zip(blocks, counts, strict=True):
        chosen = lowest(scores(block, kept), count)
        kept = chosen if kept is None else kept.gather(1, chosen)
        found.append(Drop(block, chosen, kept))
    if schedule == "upfront" and kept is not None:
        return [Drop(0, kept, kept)]
    return found


def present(found: Sequence[Drop], block: int) -> Tensor | None:
    """The patches (n, k) that are there in a block of the student; None if all are."""
    earlier = [drop.kept for drop in found if drop.block <= block]
    return earlier[-1] if earlier else None
