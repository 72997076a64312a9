"""The distillation terms of TransKD's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.dense import hierarchical_context_loss
from fedlab.distill.precision import full_precision


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """L_CSF = Σ_i HCL(O_i, F_i^T).

    Args:
        student: O_i (B, C_i^T, H_i, W_i).
        teacher: F_i^T of the same shapes.
    """
    return torch.stack([hierarchical_context_loss(o, f) for o, f in zip(student, teacher, strict=True)]).sum()


def embedding_loss(student: Mapping[int, Tensor], teacher: Sequence[Tensor], weights: Mapping[int, float]) -> Tensor:
    """L_PEA = Σ_i β_i MSE(Ê_i, E_i^T).

    Args:
        student: Ê_i (B, N_i, C_i^T) by stage from 0, for the stages that count.
        teacher: E_i^T of all stages.
        weights: β by stage.
    """
    terms = []
    for stage, aligned in student.items():
        with full_precision(aligned, teacher[stage]) as (own, target):
            terms.append(weights[stage] * F.mse_loss(own, target))
    return torch.stack(terms).sum()
