"""A vision transformer for images and spectrograms, over any grid of patches; it returns all tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.heads import init_linear

Positions = Literal["learned", "sincos"]
Resize = Literal["bilinear", "bicubic"]
DropPathRule = Literal["linear", "constant"]
Activation = Literal["gelu", "quick_gelu"]


class ViT(nn.Module):
    """Pre-norm vision transformer with one class token.

    Args:
        input_size: (H, W) the positions are made for; other sizes get them resized.
        patch: height and width of a patch; H and W must be multiples of it.
        channels: C.
        width: D.
        depth: blocks.
        heads: attention heads, a divisor of `width`.
        mlp_ratio: hidden width of a block's MLP over D.
        drop_path: rate of stochastic depth of the last block.
        drop_path_rule: ``linear`` grows from 0 in the first block; ``constant`` has the same rate in all blocks.
        positions: ``learned``, or ``sincos``, fixed and not part of the state; these need a width divisible by 4.
        resize: how positions are interpolated for another grid.
        layer_scale: initial value of a learned factor of each channel of every residual; None for no such factor.
        mask_token: whether there is a learned token that can take the place of patches, see `embed`.
        pre_norm: whether tokens are normalized before the first block, as in CLIP.
        activation: of the blocks' MLPs; ``quick_gelu`` is CLIP's x · sigmoid(1.702 x).
        init_std: standard deviation of the initial weights of the blocks' linear layers. Tokens and positions always
            start with 0.02.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; initialization as in DINO (truncated normal of 0.02, patches
    as the library does).
    """

    positions: Tensor

    def __init__(
        self,
        input_size: tuple[int, int],
        *,
        patch: int = 16,
        channels: int = 1,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        drop_path_rule: DropPathRule = "linear",
        positions: Positions = "learned",
        resize: Resize = "bilinear",
        layer_scale: float | None = None,
        mask_token: bool = False,
        pre_norm: bool = False,
        activation: Activation = "gelu",
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.patch, self.width, self.resize = patch, width, resize
        self.grid = (input_size[0] // patch, input_size[1] // patch)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        if positions == "learned":
            self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        else:
            self.register_buffer("positions", sincos_positions(self.grid, width), persistent=False)
        rates = drop_path_rates(drop_path, depth, drop_path_rule)
        self.pre_norm = nn.LayerNorm(width, eps=1e-5) if pre_norm else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate, layer_scale, activation) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        if positions == "learned":
            nn.init.trunc_normal_(self.positions, std=0.02)
        self.apply(partial(init_linear, std=init_std))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if mask_token else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, keep: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """(n, C, H, W) → normalized tokens (n, 1 + N, D): the class token, then the patches row by row; see `embed`."""
        normalized: Tensor = self.norm(run_blocks(self.blocks, self.embed(x, keep, masked)))
        return normalized

    def embed(self, x: Tensor, keep: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Tokens as the first block receives them. Positions are added first, and then patches are selected.

        Args:
            x: (n, C, H, W).
            keep: (n, k) integers, the patches of each image that stay, in the order in which they stay; None keeps all.
                The class token always stays.
            masked: (n, N) or (n, rows, columns) truth values, the patches whose content becomes the mask token; they
                keep their positions.

        Returns:
            (n, 1 + N, D), or (n, 1 + k, D).

        Raises:
            ValueError: `masked`, but no mask token.
        """
        maps = self.patches(x)
        positions = self.positions_for((maps.shape[2], maps.shape[3]))
        patches = maps.flatten(2).transpose(1, 2)
        if masked is not None:
            if self.mask_token is None:
                raise ValueError("this ViT was made without a mask token")
            patches = torch.where(masked.flatten(1)[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1) + positions
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        return tokens if keep is None else kept_tokens(tokens, keep)

    def hidden(self, x: Tensor, layers: Sequence[int] | None = None, keep: Tensor | None = None) -> tuple[Tensor, ...]:
        """Tokens after chosen blocks, (n, 1 + N, D) each, without the final normalization.

        Args:
            x: (n, C, H, W).
            layers: numbers of blocks from 1, in rising order; 0 stands for the tokens before the first block. None
                returns those after every block.
            keep: see `embed`.
        """
        wanted = range(1, len(self.blocks) + 1) if layers is None else layers
        tokens, done, found = self.embed(x, keep), 0, []
        for layer in wanted:
            tokens, done = run_blocks(self.blocks[done:layer], tokens), layer
            found.append(tokens)
        return tuple(found)

    def run(self, tokens: Tensor, blocks: slice = slice(None), mask: Tensor | None = None) -> Tensor:
        """Tokens (n, T, D) after some of the blocks, all by default, without the final normalization; see `Block`."""
        return run_blocks(self.blocks[blocks], tokens, mask)

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """Positions (1, 1 + N, D) for a grid of patches, resized where it is not the one they were made for."""
        if grid == self.grid:
            return self.positions
        resized = resized_positions(self.positions[:, 1:], self.grid, grid, self.resize)
        return torch.cat([self.positions[:, :1], resized], dim=1)


def run_blocks(blocks: Iterable[nn.Module], tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tokens (n, T, D) after blocks, one after the other, under a mask (T, T) of attention."""
    for block in blocks:
        tokens = block(tokens, mask)
    return tokens


def kept_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """The first of the tokens (n, 1 + N, D), and those of the patches `keep` (n, k) in this order: (n, 1 + k, D)."""
    chosen = tokens[:, 1:].gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))
    return torch.cat([tokens[:, :1], chosen], dim=1)


def drop_path_rates(rate: float, depth: int, rule: DropPathRule = "linear") -> list[float]:
    """The rate of stochastic depth of every block: linearly from 0 to `rate`, or always `rate`."""
    if rule == "constant":
        return [rate] * depth
    return [rate * index / max(1, depth - 1) for index in range(depth)]


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed positions (1, 1 + N, D) of a grid of patches, row by row; that of the class token is 0.

    The first half of the channels is of the column and the second of the row: sines, then cosines of
    place · 10000^(−4 i / D) for i = 0 … D / 4 − 1.

    Raises:
        ValueError: `width` is not divisible by 4.

    Source: He et al. 2022, arXiv 2111.06377 (``get_2d_sincos_pos_embed``).
    """
    if width % 4:
        raise ValueError(f"sine and cosine positions need a width divisible by 4, not {width}")
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    patches = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, width), patches.float()])[None]


def resized_positions(
    positions: Tensor, grid: tuple[int, int], size: tuple[int, int], mode: Resize = "bilinear"
) -> Tensor:
    """Positions (1, N, D) of a grid of patches, row by row, interpolated for another."""
    learned = positions.transpose(1, 2).reshape(1, positions.shape[2], *grid)
    return F.interpolate(learned, size=size, mode=mode, align_corners=False).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Self-attention and MLP, each with a normalized input and a residual that stochastic depth may skip.

    Args:
        width: D.
        heads: attention heads.
        mlp_ratio: hidden width over D.
        drop_path: probability that a sample skips a residual in training.
        layer_scale: initial value of a learned factor of each channel of a residual; None for no such factor.
        activation: of the MLP.

    Source: Touvron et al. 2021, arXiv 2103.17239 (``layer_scale``).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: int,
        drop_path: float,
        layer_scale: float | None = None,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        between = nn.GELU() if activation == "gelu" else QuickGELU()
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), between, nn.Linear(mlp_ratio * width, width))
        self.scale1, self.scale2 = _layer_scale(width, layer_scale), _layer_scale(width, layer_scale)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, T, D) → (n, T, D), under a mask (T, T), True where attention is allowed; None allows all."""
        query, key, value = self.queries_keys_values(tokens)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self._kept(_scaled(self.out(mixed.transpose(1, 2).flatten(2)), self.scale1))
        return tokens + self._kept(_scaled(self.mlp(self.norm2(tokens)), self.scale2))

    def attention_weights(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights of `forward`, mean over heads, (n, T, T)."""
        query, key, _ = self.queries_keys_values(tokens)
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights: Tensor = logits.softmax(dim=-1).mean(dim=1)
        return weights

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the block's input (n, T, D), (n, heads, T, D / heads) each."""
        n, count, _ = tokens.shape
        query, key, value = self.qkv(self.norm1(tokens)).reshape(n, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return query, key, value

    def _kept(self, residual: Tensor) -> Tensor:
        """Stochastic depth by sample (Huang et al. 2016), from the global generator as dropout is."""
        if not self.training or not self.drop_path:
            return residual
        keep = 1 - self.drop_path
        return residual * residual.new_empty(len(residual), 1, 1).bernoulli_(keep) / keep


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the activation of CLIP (Radford et al. 2021, arXiv 2103.00020)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, element by element."""
        return x * torch.sigmoid(1.702 * x)


def _layer_scale(width: int, initial: float | None) -> nn.Parameter | None:
    return None if initial is None else nn.Parameter(torch.full((width,), initial))


def _scaled(residual: Tensor, scale: Tensor | None) -> Tensor:
    return residual if scale is None else scale * residual
