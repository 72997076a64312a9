"""The pixels of patches, as masked autoencoders restore them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.distill.precision import full_precision


def patchify(images: Tensor, patch: int) -> Tensor:
    """The pixels of every patch, row by row: images (n, C, H, W) → (n, N, C · patch²)."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def standardized(patches: Tensor) -> Tensor:
    """Patches (n, N, d) with mean 0 and variance 1, each by itself; a patch of a single color becomes 0.

    Source: He et al. 2022, arXiv 2111.06377 (``norm_pix_loss``): unbiased variance, to which 10⁻⁶ is added.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_patch_error(restored: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error of the masked patches of all images; 0 if none is masked.

    Args:
        restored: what was made of every patch, (n, N, d).
        targets: what it should be, such as `standardized` pixels, (n, N, d).
        masked: truth values (n, N), the patches that were hidden.

    Source: He et al. 2022, arXiv 2111.06377.
    """
    with full_precision(restored, targets) as (made, wanted):
        errors = (made - wanted).square().mean(-1)
        return (errors * masked).sum() / masked.sum().clamp(min=1)
