"""The client half of federated algorithms: changes to the gradient of local steps, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Correction(Protocol):
    """Called between backward and the optimiser step of local training."""

    def apply(self, parameters: Sequence[Tensor]) -> None:
        """Change ``parameter.grad`` in place."""


class Proximal:
    """FedProx: the gradient of (μ/2)·‖w − x‖², x the received weights (Li et al. 2020, eq. 2).

    Args:
        parameters: trainable parameters at the start of the round.
        mu: μ ≥ 0.
    """

    def __init__(self, parameters: Sequence[Tensor], mu: float) -> None:
        self.mu = mu
        self.anchor = {id(p): p.detach().clone() for p in parameters}

    @torch.no_grad()
    def apply(self, parameters: Sequence[Tensor]) -> None:
        for p in parameters:
            anchor = self.anchor.get(id(p))
            if anchor is not None and p.grad is not None:
                p.grad.add_(p - anchor, alpha=self.mu)


def requested(config: Mapping[str, object], parameters: Sequence[Tensor]) -> list[Correction]:
    """The corrections a strategy asks for in a round's configuration (``proximal-mu`` is Flower's own key)."""
    mu = config.get("proximal-mu", 0.0)
    return [Proximal(parameters, float(mu))] if isinstance(mu, (int, float)) and mu > 0 else []
