"""Masks that are compared by Dice: pairs of predicted and given masks, and the loss of such pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_table(masks: Tensor, targets: Tensor) -> Tensor:
    """Dice 2 |a ∩ b| / (|a| + |b|) of every mask with every target, (q, m) in [0, 1]; of two empty ones, 0.

    Args:
        masks: (q, …) values in [0, 1].
        targets: (m, …), of the same size.
    """
    a, b = masks.flatten(1), targets.flatten(1).to(masks.dtype)
    return _quotient(a @ b.T, a.sum(1)[:, None] + b.sum(1))


def dice(masks: Tensor, targets: Tensor) -> Tensor:
    """Dice of every mask with its own target, (m,); see `dice_table`."""
    a, b = masks.flatten(1), targets.flatten(1).to(masks.dtype)
    return _quotient((a * b).sum(1), a.sum(1) + b.sum(1))


def _quotient(common: Tensor, sizes: Tensor) -> Tensor:
    return 2 * common / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)


def assigned(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The assignment of rows to columns that costs least (Hungarian algorithm), without gradient.

    Args:
        cost: (q, m). The smaller side is assigned in full.

    Returns:
        Numbers of the assigned rows, rising, and of their columns, (min(q, m),) each.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost.detach().float().numpy(force=True))
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)


def mask_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, mean over pixels and masks, and 1 − Dice, mean over masks.

    Args:
        logits: (m, h, w), m > 0.
        targets: (m, h, w) truth values.

    Source: Cheng et al. 2022, arXiv 2112.01527 (Mask2Former), over all pixels instead of drawn ones, and without the
    constant 1 that its code adds to both sides of the quotient.
    """
    wanted = targets.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, wanted), 1 - dice(logits.sigmoid(), wanted).mean()
