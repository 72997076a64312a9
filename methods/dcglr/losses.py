"""The contrastive term of DCGLR (§3.3). Its form is a reconstruction, since the paper's own is not known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.contrastive import info_nce
from fedlab.methods.dcglr.settings import DCGLRSettings

_SCALE = 64.0


def contrast(
    s: DCGLRSettings,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    targets: Sequence[Tensor],
    logits: Sequence[Tensor],
) -> Tensor:
    """L_con in the form of the setting ``contrast``; see `infonce` and `npair` for the arguments."""
    if s.contrast == "infonce":
        return infonce(student, teacher, s.contrast_temperature)
    return npair(targets, logits, s.student_temperature)


def infonce(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """½ [CE(z_s1 · z_t2 / τ_c) + CE(z_s2 · z_t1 / τ_c)]: each shape finds itself in the teacher's other view.

    Args:
        student: z of the two global views, (B, d) each.
        teacher: likewise; it gets no gradient.
        temperature: τ_c.
    """
    crossed = zip(student[:2], reversed(teacher), strict=True)
    return torch.stack([info_nce(z_s, z_t.detach(), temperature) for z_s, z_t in crossed]).mean()


def npair(targets: Sequence[Tensor], logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Cross-entropy of score[b, b'] = 64 p_b · s_b' / τ_s with target b, mean over all pairs of views.

    The anchor is the teacher's target, which gets no gradient, and the references are the student's logits.

    Args:
        targets: p of the teacher's global views, (B, K) each.
        logits: s of all views of the student, (B, K) each.
        temperature: τ_s.

    Source: the N-pair loss of Rao et al. 2020, arXiv 2003.12971, in the form of a branch of the closest code.
    """
    own = torch.arange(len(targets[0]), device=targets[0].device)
    scores = [_SCALE * p.detach() @ (s.float() / temperature).T for p in targets for s in logits]
    return torch.stack([F.cross_entropy(score, own) for score in scores]).mean()
