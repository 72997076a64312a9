"""The three losses of FSFM (§3.4)."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.contrastive import info_nce, supervised_contrastive
from fedlab.distill.directions import directions

Similarity = Literal["simsiam", "byol", "info_nce", "moco", "simclr"]
_EPS = 1e-6


def patch_targets(images: Tensor, patch: int, standardize: bool) -> Tensor:
    """The pixels of each patch, in the order channel, row, column.

    Args:
        images: (n, C, H, W).
        patch: height and width of a patch.
        standardize: whether the values of each patch are brought to mean 0 and (unbiased) variance 1; a patch of one
            color becomes 0.

    Returns:
        (n, N, C · patch²), patches row by row.
    """
    pixels = F.unfold(images.float(), patch, stride=patch).transpose(1, 2)
    if not standardize:
        return pixels
    mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
    return (pixels - mean) / (variance + _EPS).sqrt()


def patch_errors(predicted: Tensor, targets: Tensor) -> Tensor:
    """e, the mean squared error of each patch, (n, N)."""
    return (predicted.float() - targets).square().mean(-1)


def masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Σ e · M / Σ M over all patches of the batch together; 0 if the mask is empty.

    Args:
        errors: e, (n, N).
        mask: M or M_fr, (n, N) truth values.
    """
    return torch.where(mask, errors, 0.0).sum() / mask.sum().clamp(min=1)


def similarity_loss(online: Tensor, target: Tensor, form: Similarity = "simsiam", temperature: float = 0.2) -> Tensor:
    """L_sim between the prediction z_o of the masked view and the projection z_t of the whole view, one direction only.

    Args:
        online: z_o, (n, d).
        target: z_t, (n, d); it gets no gradient.
        form: ``simsiam``, −½ · mean cos(z_o, z_t), is the paper's. ``byol`` is 2 − 2 · mean cos; ``info_nce`` the
            cross-entropy of a face's own target among those of the batch; ``moco`` the same times 2τ; ``simclr`` the
            NT-Xent loss, in which both views look for each other among all others.
        temperature: τ of the last three.

    Returns:
        A scalar.

    Source: §3.4; Grill et al. 2020, arXiv 2006.07733; Chen et al. 2020, arXiv 2002.05709; Chen et al. 2021,
    arXiv 2104.02057.
    """
    target = target.detach().float()
    match form:
        case "simsiam" | "byol":
            cosine = (directions(online.float()) * directions(target)).sum(-1).mean()
            return -0.5 * cosine if form == "simsiam" else 2 - 2 * cosine
        case "info_nce":
            return info_nce(online, target, temperature)
        case "moco":
            return 2 * temperature * info_nce(online, target, temperature)
        case "simclr":
            own = torch.arange(len(online), device=online.device).repeat(2)
            return supervised_contrastive(torch.cat([online.float(), target]), own, temperature)
        case _:
            assert_never(form)
