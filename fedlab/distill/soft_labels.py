"""Distillation from the softened outputs of a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision


def soft_label_kl(student: Tensor, teacher: Tensor, temperature: float, squared: bool = False) -> Tensor:
    """KL(softmax(teacher/τ) ‖ softmax(student/τ)), mean over the batch, in nats.

    Args:
        student: logits (n, K).
        teacher: logits (n, K). They are a target, so that no gradient flows into them.
        temperature: τ.
        squared: multiply by τ², so that the size of the gradient hardly depends on τ.

    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """
    with full_precision(student, teacher.detach()) as (ours, theirs):
        divergence = F.kl_div(
            F.log_softmax(ours / temperature, 1),
            F.log_softmax(theirs / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * temperature**2 if squared else divergence
