"""Self-distillation between views: a teacher's targets for whole views and for single patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.prototypes import cross_entropies


def cross_view_loss(targets: Sequence[Tensor], logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean cross-entropy H(p_q, s_v) over all pairs of a teacher's view q and another view v of the student.

    The student's first views are the teacher's, in the same order; those that follow, such as small crops, are the
    student's alone. A view never teaches itself. All pairs weigh the same.

    Args:
        targets: p of each view of the teacher, (n, K), without gradient.
        logits: s of each view of the student, (n, K).
        temperature: τ_s.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer views of the student than of the teacher, or no pair.

    Source: Caron et al. 2021, arXiv 2104.14294, Eq. 3, divided by the number of pairs as in the authors' code.
    """
    count = cross_view_terms(len(targets), len(logits))
    if len(logits) < len(targets) or not count:
        raise ValueError(f"{len(targets)} views of the teacher and {len(logits)} of the student make no pairs")
    rows = [
        cross_entropies(target, log_probabilities)
        for v, log_probabilities in enumerate(F.log_softmax(s.float() / temperature, dim=-1) for s in logits)
        for q, target in enumerate(targets)
        if q != v
    ]
    return torch.cat(rows).mean()


def cross_view_terms(teacher: int, student: int) -> int:
    """Number of pairs in `cross_view_loss`: two views of the teacher and V of the student make 2V − 2."""
    return teacher * student - min(teacher, student)


def patch_loss(targets: Tensor, logits: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy H(p, s) of the same patch of the same view: the mean over its patches, then over the views.

    Patches of different crops lie at different places, so that views are not crossed here.

    Args:
        targets: p, (n, N, K), without gradient.
        logits: s, (n, N, K).
        temperature: τ_s.
        mask: (n, N) truth values, the patches that count; None counts all. A view without any adds 0 and still counts
            in n.

    Returns:
        A scalar.

    Source: Zhou et al. 2022, arXiv 2111.07832 (iBOT), Eq. 2, over n views; over all patches as in Atito et al. 2021,
    arXiv 2111.15340 (MC-SSL).
    """
    rows = cross_entropies(targets, F.log_softmax(logits.float() / temperature, dim=-1))
    if mask is None:
        return rows.mean()
    counted = torch.where(mask, rows, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return counted.mean()
