"""Maximum mean discrepancy."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.distill.precision import full_precision


def rbf_mmd(source: Tensor, target: Tensor, scales: int = 5, factor: float = 2.0) -> Tensor:
    """Squared maximum mean discrepancy under a sum of Gaussian kernels (biased estimate).

    Kernel k(x, y) = Σ_{k<scales} exp(−‖x − y‖² / (b·factorᵏ)); b is the mean squared distance between different
    samples of both sets together, divided by factor^⌊scales/2⌋. No gradient flows through b.

    Args:
        source: (n, d).
        target: (m, d).
        scales: number of kernels.
        factor: ratio of neighboring bandwidths.

    Returns:
        A scalar, mean k(s, s') + mean k(t, t') − 2 mean k(s, t).

    Source: Gretton et al. 2012 (JMLR 13), Eq. 5; kernels of Long et al. 2015, arXiv 1502.02791; as offered by
    Huang et al. 2023, arXiv 2303.02278.
    """
    with full_precision(source, target) as (x, y):
        both = torch.cat([x, y])
        both = both - both.mean(0)  # distances do not change, and the next lines lose fewer digits
        square = both.square().sum(1)
        distance = (square[:, None] + square - 2 * both @ both.T).clamp(min=0)
        distance = distance.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), 0.0)
        count = len(both)
        bandwidth = distance.detach().sum() / (count * count - count) / factor ** (scales // 2)
        bandwidth = bandwidth.clamp(min=torch.finfo(both.dtype).tiny)  # if all samples are equal, every kernel is 1
        kernel = torch.stack([torch.exp(-distance / (bandwidth * factor**k)) for k in range(scales)]).sum(0)
        n = len(x)
        return kernel[:n, :n].mean() + kernel[n:, n:].mean() - kernel[:n, n:].mean() - kernel[n:, :n].mean()
