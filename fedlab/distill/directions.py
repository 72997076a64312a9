"""Directions of vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(x: Tensor) -> Tensor:
    """x / ‖x‖ along the last axis; a vector that is zero has no direction, stays zero and receives no gradient."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, torch.inf)
