"""A vision transformer for images and spectrograms, over any grid of patches; it returns all tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ViT(nn.Module):
    """Pre-norm vision transformer with one class token and learned positions.

    Args:
        input_size: (H, W) the positions are learned for; other sizes get them resized.
        patch: height and width of a patch; H and W must be multiples of it.
        channels: C.
        width: D.
        depth: blocks.
        heads: attention heads, a divisor of `width`.
        mlp_ratio: hidden width of a block's MLP over D.
        drop_path: rate of stochastic depth of the last block, from 0 in the first linearly.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; initialization as in DINO (truncated normal of 0.02, patches
    as the library does).
    """

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
    ) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.grid = (input_size[0] // patch, input_size[1] // patch)
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → normalized tokens (n, 1 + N, D): the class token, then the patches row by row."""
        x = self.patches(x)
        positions = self.positions_for((x.shape[2], x.shape[3]))
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + positions
        for block in self.blocks:
            tokens = block(tokens)
        normalized: Tensor = self.norm(tokens)
        return normalized

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """Positions (1, 1 + N, D) for a grid of patches, resized bilinearly where it is not the learned one."""
        if grid == self.grid:
            return self.positions
        return torch.cat([self.positions[:, :1], resized_positions(self.positions[:, 1:], self.grid, grid)], dim=1)


def resized_positions(positions: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Positions (1, N, D) of a grid of patches, row by row, resized bilinearly to another."""
    learned = positions.transpose(1, 2).reshape(1, positions.shape[2], *grid)
    return F.interpolate(learned, size=size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Self-attention and MLP, each with a normalized input and a residual that stochastic depth may skip.

    Args:
        width: D.
        heads: attention heads.
        mlp_ratio: hidden width over D.
        drop_path: probability that a sample skips a residual in training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, T, D) → (n, T, D), under a mask (T, T), True where attention is allowed; None allows all."""
        query, key, value = self._queries_keys_values(tokens)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self._kept(self.out(mixed.transpose(1, 2).flatten(2)))
        return tokens + self._kept(self.mlp(self.norm2(tokens)))

    def attention_weights(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights of `forward`, mean over heads, (n, T, T)."""
        query, key, _ = self._queries_keys_values(tokens)
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights: Tensor = logits.softmax(dim=-1).mean(dim=1)
        return weights

    def _queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, heads, T, D / heads) each."""
        n, count, _ = tokens.shape
        query, key, value = self.qkv(self.norm1(tokens)).reshape(n, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return query, key, value

    def _kept(self, residual: Tensor) -> Tensor:
        """Stochastic depth by sample (Huang et al. 2016), from the global generator as dropout is."""
        if not self.training or not self.drop_path:
            return residual
        keep = 1 - self.drop_path
        return residual * residual.new_empty(len(residual), 1, 1).bernoulli_(keep) / keep


def init_linear(module: nn.Module) -> None:
    """Linear layers: weights from a truncated normal of 0.02, biases 0; for ``module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
