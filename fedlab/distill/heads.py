"""Heads on the tokens of a backbone: projections onto prototypes, and pixels from the tokens of patches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.prototypes import Prototypes

Norm = Literal["none", "batch", "layer"]
Activation = Literal["gelu", "relu"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    """Linear layers: weights from a truncated normal of deviation `std`, biases 0; for ``module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Projected(NamedTuple):
    """What a projection head returns.

    Args:
        bottleneck: z (…, d), of unit length if the head normalizes it.
        logits: (…, K), gain times the cosines of z with the prototypes; K is 0 for a head without prototypes.
    """

    bottleneck: Tensor
    logits: Tensor


class ProjectionHead(nn.Module):
    """Layers down to a bottleneck, L2 normalization, and a weight-normalized linear layer to prototypes.

    With the defaults this is the head of DINO. With ``norm="batch"``, ``activation=("relu", "gelu")``,
    ``last_norm=True`` and ``normalize=False`` it is the contrastive head of SiT, and with ``norm="layer"``,
    ``activation="relu"`` and ``normalize=False`` a projector or predictor without prototypes. A single width makes
    a single linear layer before the normalization.

    Args:
        dim: D, width of a token.
        widths: of all layers; the last one is d, the width of the bottleneck.
        prototypes: K; 0 for a head without prototypes.
        norm: normalization of every hidden layer, before its activation.
        activation: of the hidden layers, one for all or one for each.
        last_norm: whether the bottleneck is normalized over the batch, without scale and shift.
        normalize: whether the bottleneck is L2-normalized, which the prototypes need.
        gain: constant factor of the logits; it is no parameter.
        init_std: standard deviation of the layers' initial weights; see `layers`.

    Raises:
        ValueError: no width, prototypes without normalization, or another number of activations than hidden layers.

    Source: Caron et al. 2021, arXiv 2104.14294 (``DINOHead``); Atito et al. 2021, arXiv 2104.03602 (``CLSHead``).
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        prototypes: int = 0,
        *,
        norm: Norm = "none",
        activation: Activation | Sequence[Activation] = "gelu",
        last_norm: bool = False,
        normalize: bool = True,
        gain: float = 1.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if prototypes and not normalize:
            raise ValueError("prototypes are compared by cosine: their head needs normalize=True")
        self.normalize = normalize
        self.mlp = layers(dim, widths, norm=norm, activation=activation, init_std=init_std)
        if last_norm:
            self.mlp.append(nn.BatchNorm1d(widths[-1], affine=False))
        self.prototypes = Prototypes(widths[-1], prototypes, gain) if prototypes else None

    def forward(self, tokens: Tensor, *, frozen: bool = False) -> Projected:
        """Tokens (…, D) → bottleneck (…, d) and logits (…, K); `frozen` prototypes get no gradient."""
        # statistics of a batch normalization are those of all tokens together
        z = self.mlp(tokens.reshape(-1, tokens.shape[-1])).unflatten(0, tokens.shape[:-1])
        if self.normalize:
            z = F.normalize(z, dim=-1)
        if self.prototypes is None:
            return Projected(z, z.new_empty(*z.shape[:-1], 0))
        return Projected(z, self.prototypes(z, frozen=frozen))


class PatchDecoder(nn.Module):
    """Pixels from the tokens of patches: layers of single tokens, GELU after each, then a transposed convolution.

    Args:
        dim: D, width of a token.
        patch: height and width of a patch in pixels.
        channels: C.
        widths: of the layers before the convolution; by default three of width D.
        init_std: standard deviation of the layers' initial weights; see `layers`.

    Source: Atito et al. 2021, arXiv 2104.03602 (``RECHead``).
    """

    def __init__(
        self, dim: int, patch: int, channels: int, widths: Sequence[int] | None = None, *, init_std: float = 0.02
    ) -> None:
        super().__init__()
        widths = (dim,) * 3 if widths is None else widths
        self.mlp = layers(dim, widths, init_std=init_std).append(nn.GELU())
        self.unpatch = nn.ConvTranspose2d(widths[-1], channels, patch, stride=patch)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (n, N, D) of a grid of N = rows · columns patches, row by row → (n, C, H, W)."""
        maps = self.mlp(tokens).transpose(1, 2).unflatten(2, grid)
        pixels: Tensor = self.unpatch(maps)
        return pixels


def layers(
    dim: int,
    widths: Sequence[int],
    *,
    norm: Norm = "none",
    activation: Activation | Sequence[Activation] = "gelu",
    init_std: float = 0.02,
) -> nn.Sequential:
    """Linear layers with a normalization and an activation after each but the last.

    Weights start from a truncated normal and biases from 0.

    Args:
        dim: width of the input.
        widths: of the layers.
        norm: normalization before every activation.
        activation: one for all hidden layers or one for each.
        init_std: standard deviation of the initial weights. 0.02 is made for layers of several hundred inputs. Layers
            of d inputs keep the size of what passes through them with about 1 / √d; with much less, several layers
            without normalization pass on almost nothing, neither forwards nor backwards.

    Raises:
        ValueError: no width, or another number of activations than hidden layers.
    """
    hidden = len(widths) - 1
    kinds: Sequence[Activation] = [activation] * hidden if isinstance(activation, str) else activation
    if hidden < 0 or len(kinds) != hidden:
        raise ValueError(f"{len(widths)} widths need {max(0, hidden)} activations, not {len(kinds)}")
    built: list[nn.Module] = []
    for (inside, outside), kind in zip(itertools.pairwise((dim, *widths)), (*kinds, None), strict=True):
        built.append(nn.Linear(inside, outside))
        if kind is not None:
            if norm != "none":
                built.append(nn.BatchNorm1d(outside) if norm == "batch" else nn.LayerNorm(outside))
            built.append(_ACTIVATIONS[kind]())
    return nn.Sequential(*built).apply(partial(init_linear, std=init_std))
