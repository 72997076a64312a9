"""Self-distillation over prototypes: cosine logits, centered and sharpened targets, running centers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """Cosines of features with K learned directions: a weight-normalized linear map without bias.

    Args:
        dim: d, width of the features.
        count: K.
        gain: constant factor of the cosines.

    Source: Caron et al. 2021, arXiv 2104.14294, except that the gain of the weight normalization is fixed and is not
    a parameter.
    """

    def __init__(self, dim: int, count: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())

    def directions(self, *, frozen: bool = False) -> Tensor:
        """The prototypes, (K, d) of unit norm; if `frozen`, they get no gradient."""
        return F.normalize(self.weight.detach() if frozen else self.weight, dim=1)

    def forward(self, features: Tensor, *, frozen: bool = False) -> Tensor:
        """L2-normalized features (…, d) → logits (…, K) in [−gain, gain]."""
        return F.linear(self.gain * features, self.directions(frozen=frozen))


class Center(nn.Module):
    """Running mean c of the teacher's logits, starting at 0.

    Args:
        size: K.
        momentum: weight of the old value in an update.

    Source: Caron et al. 2021, arXiv 2104.14294, Eq. 4.
    """

    value: Tensor

    def __init__(self, size: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(size))

    @torch.no_grad()
    def update(self, mean: Tensor) -> None:
        """Set c ← momentum · c + (1 − momentum) · mean. Call it after the loss that used c.

        Args:
            mean: (K,), mean of the logits of a batch.
        """
        self.value.mul_(self.momentum).add_(mean.to(self.value.dtype), alpha=1 - self.momentum)


def sharpened(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Targets softmax((t − c) / τ_t), (n, K) from logits (n, K) and center (K,); no gradient."""
    return F.softmax((logits.detach().float() - center) / temperature, dim=-1)


def prototype_cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Mean over rows of H(p, s) = −Σ_k p_k log softmax(s / τ_s)_k.

    Args:
        targets: p, (n, K).
        logits: s, (n, K).
        temperature: τ_s.
    """
    return cross_entropies(targets, F.log_softmax(logits.float() / temperature, dim=-1)).mean()


def cross_entropies(targets: Tensor, log_probabilities: Tensor) -> Tensor:
    """H(p, s) = −Σ_k p_k log s_k by row: (…) from p and log s, (…, K) each."""
    return -(targets * log_probabilities).sum(-1)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats along the last axis, with 0 · log 0 = 0."""
    summed: Tensor = torch.special.entr(probabilities).sum(-1)
    return summed
