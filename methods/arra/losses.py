"""ARRA's losses. n sequences of T tokens, V tokens in the vocabulary, D dimensions of the external encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision


def next_token_loss(logits: Tensor, ids: Tensor, predicted: Tensor) -> Tensor:
    """L_AR = mean over the predicted positions t of −log p(x_{t+1} | x_≤t), in nats.

    Args:
        logits: (n, T, V) of position t for the token x_{t+1}.
        ids: tokens x (n, T).
        predicted: positions t that count (n, T) bool; never the last of a sequence.

    Returns:
        A scalar.

    Source: arXiv 2503.07334, Eq. 1.
    """
    with full_precision(logits) as (logits,):
        return F.cross_entropy(logits[:, :-1][predicted[:, :-1]], ids[:, 1:][predicted[:, :-1]])


def alignment_loss(projected: Tensor, target: Tensor, aligned: Tensor) -> Tensor:
    """L_GVA = mean over the batch of the mean over aligned positions t of 1 − cos(A_φ(h_t), f_GF).

    The same vector f_GF is the target of every position of an image; no gradient reaches it.

    Args:
        projected: A_φ(h) (n, T, D).
        target: f_GF (n, D).
        aligned: positions that count (n, T) bool; at least one in each row.

    Returns:
        A scalar between 0 and 2.

    Source: arXiv 2503.07334, L_GVA.
    """
    with full_precision(projected, target.detach()) as (z, f):
        distance = 1 - F.cosine_similarity(z, f[:, None], dim=2)
        return ((distance * aligned).sum(dim=1) / aligned.sum(dim=1)).mean()


def z_loss(logits: Tensor, predicted: Tensor) -> Tensor:
    """L_z = mean over the predicted positions of (log Σ_v e^{logit_v})², which keeps logits from drifting.

    Args:
        logits: (n, T, V).
        predicted: positions that count (n, T) bool.

    Returns:
        A scalar.

    Source: arXiv 2503.07334, appendix; ``modeling_xllmx_chameleon_align.py`` of the authors' code.
    """
    with full_precision(logits) as (logits,):
        return torch.logsumexp(logits[predicted], dim=1).square().mean()
