"""The three losses of ASiT (§3.4). Views come as one batch of 2B rows, view 0 first."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.distill.prototypes import prototype_cross_entropy


def global_loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """L_cls = ½ [H(p(t⁰), s¹) + H(p(t¹), s⁰)]: each view of the student is taught by the other view of the teacher.

    Args:
        targets: p, (2B, K_c) of the teacher's class tokens.
        logits: s, (2B, K_c) of the student's.
        temperature: τ_s.
    """
    first, second = targets.chunk(2)
    return prototype_cross_entropy(torch.cat([second, first]), logits, temperature)


def local_loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """L_dat: H(p(t_n), s_n) of the same view and place, mean over all patches, corrupted or not.

    Args:
        targets: p, (2B · N, K_p).
        logits: s, (2B · N, K_p).
        temperature: τ_s.
    """
    return prototype_cross_entropy(targets, logits, temperature)


def reconstruction_loss(reconstruction: Tensor, clean: Tensor, mask: Tensor) -> Tensor:
    """L_rec: mean |x̂ − x| over all corrupted pixels of the batch together; 0 where none is.

    Args:
        reconstruction: x̂, (n, frames, M).
        clean: x, likewise.
        mask: truth values, likewise.
    """
    errors = (reconstruction.float() - clean).abs()
    return torch.where(mask, errors, 0.0).sum() / mask.sum().clamp(min=1)
