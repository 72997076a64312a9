"""PAT's networks: a ViT with part tokens, and the neck between its feature and the classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedlab.methods.pat.masks import Grid, Rectangle, attention_mask, full_bands
from fedlab.models.checkpoints import State, load_pretrained
from fedlab.models.vit import Block, drop_path_rates, run_blocks


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
        self.blocks = nn.ModuleList(_block(dim, heads, mlp_ratio, r) for r in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for weight in (self.tokens, self.positions):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, images: Tensor, rectangles: tuple[Rectangle, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Features of the cls token (n, D) and of the parts (n, parts, D).

        Args:
            images: (n, C, H, W).
            rectangles: what each part sees; None: its full band, always the same.
        """
        x, mask = self._start(images, rectangles)
        x = run_blocks(self.blocks, x, mask)
        x = self.norm(x[:, : 1 + self.parts])
        return x[:, 0], x[:, 1:]

    def attention_maps(self, images: Tensor) -> Tensor:
        """Last layer's attention of [cls, parts] to the patches, mean over heads, (n, 1 + parts, rows, columns)."""
        x, mask = self._start(images, None)
        x = run_blocks(self.blocks[:-1], x, mask)
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


def start_from(backbone: PartViT, source: str) -> None:
    """Start from a transformers ViT checkpoint, whose cls token and its position the part tokens start from too.

    Args:
        backbone: changed in place.
        source: hub name or local folder.

    Raises:
        ConfigError: it is not there, is no ViT, or does not fit.
    """

    def convert(state: State) -> State:
        cls, positions = state.pop("class_token"), state.pop("positions")
        renamed = {name.replace("patches.", "patch."): value for name, value in state.items()}
        repeated = torch.cat([positions[:, :1].expand(-1, 1 + backbone.parts, -1), positions[:, 1:]], dim=1)
        return {**renamed, "tokens": cls.expand(-1, 1 + backbone.parts, -1), "positions": repeated}

    load_pretrained(backbone, source, convert=convert)


def _block(dim: int, heads: int, mlp_ratio: int, drop_path: float) -> Block:
    """A layer whose initial weights are scaled with its width."""
    block = Block(dim, heads, mlp_ratio, drop_path)
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            # 0.02 is made for width 768; narrow layers that start as small drown what patches say in the part tokens
            nn.init.trunc_normal_(layer.weight, std=0.02 * (768 / dim) ** 0.5)
            nn.init.zeros_(layer.bias)
    return block


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
