"""DeGLA's losses. All embeddings are L2-normalized; B captions with K false ones each, d dimensions.

v image, t caption, n false caption; a star marks the teacher's. ``present`` (B, K) says which false captions there are;
those that are missing take part in no sum.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision

TGC_SCALE = 10.0
"""1/τ of the text-grounded contrast, fixed in the authors' code (``src/open_clip/loss.py``); the paper writes τ."""
Contrast = Literal["all", "own", "none"]


class Embeddings(NamedTuple):
    """The embeddings that one model computes for a batch.

    Args:
        image: v (B, d).
        text: t (B, d).
        negatives: n (B, K, d); K may be 0.
    """

    image: Tensor
    text: Tensor
    negatives: Tensor


def base_contrast(e: Embeddings, present: Tensor, scale: Tensor, negatives: Contrast = "all") -> Tensor:
    """L_base = ½ (L_i2t + L_t2i): symmetric InfoNCE whose images also meet false captions (NegCLIP).

    L_i2t = mean_i CE of s v_i·[t_1 … t_B, false captions] with target i; L_t2i = mean_i CE of s t_i·[v_1 … v_B]. False
    captions are never used to find an image, because none belongs to them.

    Args:
        e: of the student.
        present: (B, K) bool.
        scale: s = exp(logit_scale).
        negatives: ``all`` false captions of the batch in every row, as released; a row's ``own``, as in Eq. 4;
            ``none`` is CLIP's loss.

    Returns:
        A scalar.

    Source: arXiv 2504.16801, Eq. 4; ``src/open_clip/loss.py`` of the authors' code.
    """
    with full_precision(*e, scale) as (v, t, n, s):
        logits, target = s * v @ t.T, torch.arange(len(v), device=v.device)
        columns = [logits]
        if negatives == "all":
            columns.append(_masked(s * v @ n.flatten(0, 1).T, present.flatten()))
        elif negatives == "own":
            columns.append(_masked(s * torch.einsum("bd,bkd->bk", v, n), present))
        return (F.cross_entropy(torch.cat(columns, dim=1), target) + F.cross_entropy(logits.T, target)) / 2


def image_grounded_contrast(e: Embeddings, present: Tensor, scale: Tensor) -> Tensor:
    """L_IGC = −mean_i log e^{s v_i·t_i} / (e^{s v_i·t_i} + Σ_k e^{s v_i·n_ik}): the caption against its own false ones.

    Args:
        e: of the student.
        present: (B, K) bool.
        scale: s = exp(logit_scale), which learns from it.

    Returns:
        A scalar.

    Source: arXiv 2504.16801, L_IGC.
    """
    with full_precision(*e, scale) as (v, t, n, s):
        return _own_contrast(s * v, t, n, present)


def text_grounded_contrast(
    e: Embeddings, teacher_text: Tensor, present: Tensor, layout: Literal["paper", "released"] = "paper"
) -> Tensor:
    """L_TGC = −mean_i log e^{10 t_i·t*_i} / (e^{10 t_i·t*_i} + Σ_k e^{10 t_i·n_ik}); the gradient does not reach t*.

    Args:
        e: of the student.
        teacher_text: t* (B, d).
        present: (B, K) bool.
        layout: ``paper`` takes a caption's own false ones; ``released`` takes numbers i, i + B, i + 2B, … of the
            row-major list, mostly those of other captions, as the authors' mask does.

    Returns:
        A scalar.

    Source: arXiv 2504.16801, Eq. 9; ``src/open_clip/loss.py`` of the authors' code.
    """
    with full_precision(*e, teacher_text.detach()) as (_, t, n, positive):
        if layout == "released":
            b, k, d = n.shape
            n, present = n.reshape(k, b, d).transpose(0, 1), present.reshape(k, b).T
        return _own_contrast(TGC_SCALE * t, positive, n, present)


def self_distillation(student: Embeddings, teacher: Embeddings, present: Tensor) -> Tensor:
    """L_D = Σ_i (‖v_i − v*_i‖² + ‖t_i − t*_i‖² + Σ_k ‖n_ik − n*_ik‖²): a sum over the batch, not a mean.

    Args:
        student: gradients flow here.
        teacher: the same batch through the teacher.
        present: (B, K) bool.

    Returns:
        A scalar.

    Source: arXiv 2504.16801, L_D; ``reduction="sum"`` in the authors' code.
    """
    with full_precision(*student, *(part.detach() for part in teacher)) as (v, t, n, v_star, t_star, n_star):
        negatives = (n - n_star).square().sum(2) * present
        return (v - v_star).square().sum() + (t - t_star).square().sum() + negatives.sum()


def _own_contrast(query: Tensor, positive: Tensor, negatives: Tensor, present: Tensor) -> Tensor:
    """Mean cross-entropy of (B, 1 + K) similarities, the first of which is the true one."""
    false = _masked(torch.einsum("bd,bkd->bk", query, negatives), present)
    logits = torch.cat([(query * positive).sum(1, keepdim=True), false], dim=1)
    return -F.log_softmax(logits, dim=1)[:, 0].mean()


def _masked(logits: Tensor, present: Tensor) -> Tensor:
    return logits.masked_fill(~present, -torch.inf)
