"""The contrast of MMC (§3.3). Its other two losses are shared with other methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlab.distill.contrastive import info_nce


def contrast_loss(queries: Sequence[Tensor], keys: Sequence[Tensor], temperature: float) -> Tensor:
    """L_con = 2 · 2τ · mean over the pairs of a student's view v and another view w of the teacher of
    CE(cos(q_v, k_w) / τ, identity).

    With two views there are two pairs, and L_con = 2τ [CE(q⁰ k¹ᵀ / τ) + CE(q¹ k⁰ᵀ / τ)] as in SiT. Negatives are the
    other pictures of the batch in the teacher's view.

    Args:
        queries: of each view of the student, (B, d): first the two global ones, then small ones.
        keys: of each global view of the teacher, (B, d); they get no gradient.
        temperature: τ.

    Source: Atito et al. 2021, arXiv 2104.03602 (``SimCLR`` of the authors' code).
    """
    pairs = [
        info_nce(query, key.detach(), temperature)
        for v, query in enumerate(queries)
        for w, key in enumerate(keys)
        if v != w
    ]
    return 4 * temperature * torch.stack(pairs).mean()
