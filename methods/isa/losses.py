"""ISA's two losses: the contrast of whole sentences with images, and their alignment with the parts of images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.contrastive import info_nce
from fedlab.distill.precision import full_precision


def contrastive_distillation(
    u: Tensor,
    v: Tensor,
    temperature: float,
    *,
    contrast: Literal["hard", "soft"] = "hard",
    symmetric: bool = False,
    anchors: Tensor | None = None,
) -> Tensor:
    """L_GCD = −1/n Σ_i log softmax_j(u_i·v_j / τ)[i]: a sentence finds its own image among those of the batch.

    With ``soft``, the target of a sentence is not its own image alone but softmax_j(v_i·v_j / τ), the distribution that
    the image itself has over all images.

    Args:
        u: vectors of the sentences, (n, d).
        v: vectors of their images by the frozen encoder, (n, d), which get no gradient.
        temperature: τ.
        contrast: the target.
        symmetric: images also find their sentences; of ``hard`` only, without anchors.
        anchors: vectors of further images (m, d), which are no sentence's own.

    Returns:
        A scalar.

    Source: arXiv 2403.01431, global contrastive distillation; reconstructed, see the README.
    """
    keys = v.detach() if anchors is None else torch.cat([v.detach(), anchors.detach().to(v)])
    if contrast == "soft":
        with full_precision(v.detach(), keys) as (own, every):
            targets = (F.normalize(own, dim=1) @ F.normalize(every, dim=1).T / temperature).softmax(dim=1)
        return info_nce(u, keys, temperature, targets=targets)
    return info_nce(u, keys, temperature, symmetric=symmetric)


def local_alignment(own: Tensor, other: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
    """L_LAR = ½ [mean_i −log p_ii + mean_i −log(1 − p_ij(i))], p_ij the probability that sentence i matches image j.

    Args:
        own: logits (n, 2) of each sentence with its own image; the second is that of a match.
        other: the same with another image j(i); None leaves the first mean alone, without ½.
        counts: whether there is such an image, (n,) bool; the second mean is over these, and 0 without any.

    Returns:
        A scalar.

    Source: arXiv 2403.01431, local alignment regularization; reconstructed after the image-text matching of BLIP
    (arXiv 2201.12086), see the README.
    """
    with full_precision(own) as (logits,):
        positive = -F.log_softmax(logits, dim=1)[:, 1].mean()
    if other is None:
        return positive
    with full_precision(other) as (logits,):
        wrong = -F.log_softmax(logits, dim=1)[:, 0]
        there = torch.ones_like(wrong) if counts is None else counts.to(wrong)
        negative = (wrong * there).sum() / there.sum().clamp(min=1)
    return (positive + negative) / 2


def hard_negatives(
    v: Tensor, temperature: float, duplicates: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Another image for each of n images, drawn with a probability proportional to exp(v_i·v_j / τ).

    Args:
        v: vectors of length 1, (n, d).
        temperature: τ.
        duplicates: images with at least this cosine show the same and are not drawn.
        generator: of the batch.

    Returns:
        Numbers j(i) (n,), and whether there is any such image (n,) bool.

    Source: Li et al. 2022, arXiv 2201.12086 (BLIP), hard negatives of image-text matching.
    """
    with full_precision(v) as (vectors,):
        cosines = vectors @ vectors.T
        excluded = (cosines >= duplicates) | torch.eye(len(v), dtype=torch.bool, device=v.device)
        uniform = torch.rand(len(v), len(v), generator=generator).clamp(min=1e-12).to(cosines)
        # the largest of log-weights with Gumbel noise is a draw from their softmax
        noisy = (cosines / temperature - (-uniform.log()).log()).masked_fill(excluded, -torch.inf)
    return noisy.argmax(dim=1), ~excluded.all(dim=1)
