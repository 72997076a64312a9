"""Distances that dataset distillation minimizes: between class means of features, and between gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from fedlab.distill.precision import full_precision

GradientDistance = Literal["rowcos", "mse", "cos"]
_EPSILON = 1e-6


def distribution_matching(
    real_features: Tensor, virtual_features: Tensor, real_labels: Tensor, virtual_labels: Tensor, classes: Sequence[int]
) -> Tensor:
    """Σ_{c ∈ classes} ‖mean of class c's real features − mean of class c's virtual features‖²₂.

    The real features are a target, so that no gradient flows into `real_features`. A class that has no real or no
    virtual sample adds 0.

    Args:
        real_features: (n, d).
        virtual_features: (m, d).
        real_labels: (n,) integers.
        virtual_labels: (m,) integers.
        classes: classes to match.

    Returns:
        A scalar, summed over classes and feature coordinates.

    Source: Zhao and Bilen 2023, arXiv 2110.04181, Eq. 5; Huang et al. 2023, arXiv 2303.02278, Eq. 3.
    """
    wanted = torch.as_tensor(classes, device=virtual_features.device)
    with full_precision(real_features.detach(), virtual_features) as (real, virtual):
        real_means, real_counts = _class_means(real, real_labels, wanted)
        virtual_means, virtual_counts = _class_means(virtual, virtual_labels, wanted)
        both = ((real_counts > 0) & (virtual_counts > 0)).to(virtual.dtype)
        return (both * (real_means - virtual_means).square().sum(1)).sum()


def _class_means(features: Tensor, labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    members = (classes[:, None] == labels).to(features.dtype)
    counts = members.sum(1)
    return members @ features / counts.clamp(min=1)[:, None], counts


def gradient_distance(
    synthetic: Sequence[Tensor], target: Sequence[Tensor], kind: GradientDistance = "rowcos"
) -> Tensor:
    """Distance between two gradients of one model, given as one tensor per parameter.

    ``rowcos``: Σ over tensors with at least two dimensions, Σ over their output rows, of
    1 − ⟨a, b⟩ / (‖a‖‖b‖ + 1e-6); biases and normalization scales do not count, and scaling a gradient changes nothing.
    ``cos``: the same, with all entries of the gradient as a single row.
    ``mse``: sum of the squared differences of all entries.

    Args:
        synthetic: gradients with a graph, so that the result can be differentiated.
        target: tensors of the same shapes.
        kind: which distance.

    Returns:
        A scalar.

    Raises:
        ValueError: the numbers of tensors differ.

    Source: Zhao, Mopuri and Bilen 2021, arXiv 2006.05929, Eq. 9 (``rowcos``) and its code (``mse``, ``cos``).
    """
    pairs = list(zip(synthetic, target, strict=True))
    match kind:
        case "rowcos":
            rows = [_cosine_distance(a.flatten(1), b.flatten(1)).sum() for a, b in pairs if a.ndim >= 2]
            return torch.stack(rows).sum()
        case "cos":
            whole_a, whole_b = (torch.cat([t.flatten() for t in side]) for side in zip(*pairs, strict=True))
            return _cosine_distance(whole_a, whole_b)
        case "mse":
            return torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
        case _:
            assert_never(kind)


def _cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    distance: Tensor = 1 - (a * b).sum(-1) / (norms + _EPSILON)
    return distance


def pseudo_gradient(before: Sequence[Tensor], after: Sequence[Tensor], lr: float) -> list[Tensor]:
    """(θ_t − θ_{t+1}) / η: the sum of the gradients of plain SGD with learning rate η between two states.

    Args:
        before: θ_t, one tensor per parameter.
        after: θ_{t+1}, tensors of the same shapes.
        lr: η > 0.

    Source: Huang et al. 2023, arXiv 2303.02278, Eq. 5.
    """
    return [(old - new) / lr for old, new in zip(before, after, strict=True)]
