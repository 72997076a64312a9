"""PAT's networks: a ViT with part tokens, and the neck between its feature and the classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.methods.pat.masks import Grid, Rectangle, attention_mask, full_bands

_EPS = 1e-6


class PartViT(nn.Module):
    """A pre-norm ViT whose tokens are [cls, parts, patches]; each part sees the patches of its rectangle only.

    Args:
        image: (C, H, W) of the images.
        patch: side of a patch in pixels.
        dim: D, width of a token.
        depth: layers.
        heads: of the attention.
        mlp_ratio: hidden width of the perceptron over D.
        parts: part tokens; 0 makes an ordinary ViT.
        drop_path: rate of stochastic depth in the last layer, rising linearly from 0 in the first.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        parts: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        channels, height, width = image
        self.grid: Grid = (height // patch, width // patch)
        self.dim, self.parts = dim, parts
        self.patch = nn.Conv2d(channels, dim, patch, stride=patch)
        self.tokens = nn.Parameter(torch.empty(1, 1 + parts, dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + parts + self.grid[0] * self.grid[1], dim))
        rates = [drop_path * layer / max(1, depth - 1) for layer in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        for weight in (self.tokens, self.positions):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, images: Tensor, rectangles: tuple[Rectangle, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Features of the cls token (n, D) and of the parts (n, parts, D).

        Args:
            images: (n, C, H, W).
            rectangles: what each part sees; None: its full band, always the same.
        """
        x, mask = self._start(images, rectangles)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x[:, : 1 + self.parts])
        return x[:, 0], x[:, 1:]

    def attention_maps(self, images: Tensor) -> Tensor:
        """Last layer's attention of [cls, parts] to the patches, mean over heads, (n, 1 + parts, rows, columns)."""
        x, mask = self._start(images, None)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        last: Any = self.blocks[-1]
        weights: Tensor = last.attention_weights(x, mask)[:, : 1 + self.parts, 1 + self.parts :]
        return weights.reshape(*weights.shape[:2], *self.grid)

    def _start(self, images: Tensor, rectangles: tuple[Rectangle, ...] | None) -> tuple[Tensor, Tensor | None]:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        tokens = self.tokens.expand(len(images), -1, -1)
        x = torch.cat([tokens, patches], dim=1) + self.positions
        if not self.parts:
            return x, None
        return x, attention_mask(rectangles or full_bands(self.grid), self.grid, images.device)


class Block(nn.Module):
    """Attention under a mask, then a perceptron, both residual and after a LayerNorm.

    Args:
        dim: D.
        heads: must divide D.
        mlp_ratio: hidden width over D.
        drop_path: probability that a sample skips a residual branch in training.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.expand = nn.Linear(dim, mlp_ratio * dim)
        self.contract = nn.Linear(mlp_ratio * dim, dim)
        for layer in (self.qkv, self.project, self.expand, self.contract):
            # 0.02 is made for width 768; narrow layers that start as small drown what patches say in the part tokens
            nn.init.trunc_normal_(layer.weight, std=0.02 * (768 / dim) ** 0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (n, N, D) under a mask (N, N), True where attention is allowed; None allows all."""
        q, k, v = self._queries_keys_values(x)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self._kept(self.project(attended))
        return x + self._kept(self.contract(F.gelu(self.expand(self.norm2(x)))))

    def attention_weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What `forward` weighs the values with, mean over heads, (n, N, N)."""
        q, k, _ = self._queries_keys_values(x)
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights: Tensor = logits.softmax(dim=-1).mean(dim=1)
        return weights

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _kept(self, branch: Tensor) -> Tensor:
        """Stochastic depth (Huang et al. 2016): the branch of some samples is dropped, that of the others scaled."""
        if not self.training or not self.drop_path:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep) / keep


def neck(dim: int) -> nn.BatchNorm1d:
    """BNNeck (Luo et al. 2019): BatchNorm between feature and classifier whose bias stays 0."""
    layer = nn.BatchNorm1d(dim)
    layer.bias.requires_grad_(False)
    return layer


def classifier(dim: int, identities: int) -> nn.Linear:
    """A linear classifier without bias, started close to 0."""
    layer = nn.Linear(dim, identities, bias=False)
    nn.init.normal_(layer.weight, std=0.001)
    return layer
