"""LGViT's networks: a vision transformer, heads that classify between its layers, and the last classifier (§3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import ConfigError, DataError
from fedlab.method import Task, network
from fedlab.methods.lgvit.settings import Kind, LGViTSettings
from fedlab.models.checkpoints import load_pretrained
from fedlab.models.vit import Block, ViT

STRIDES: dict[Kind, int] = {"lph_dw": 1, "lph": 1, "gah2": 2, "gah3": 3}
"""The stride at which a head looks at the grid of patches, of the heads that have features of patches."""
LOCAL: tuple[Kind, ...] = ("lph_dw", "lph")
GLOBAL: tuple[Kind, ...] = ("gah2", "gah3")


class Seen(NamedTuple):
    """What an exit makes of n samples.

    Args:
        kind: of its head.
        logits: (n, K).
        features: Φ, what the head makes of patch tokens, before they are averaged, (n, M, C); (n, 0, C) of heads that
            have none.
    """

    kind: Kind
    logits: Tensor
    features: Tensor


class Whole(NamedTuple):
    """What the whole network makes of n samples.

    Args:
        exits: of every exit that was asked for.
        final: logits of the last classifier, (n, K).
        last: H_L, tokens (n, S + N, C) after the last layer, without normalization.
    """

    exits: tuple[Seen, ...]
    final: Tensor
    last: Tensor


class Backbone(ViT):
    """A ViT with S = 1 special token, the class token, or with the distillation token of DeiT as a second one.

    Args:
        settings: the method's.
        channels: of an image.
        size: height and width of an image.

    Source: Touvron et al. 2021, arXiv 2012.12877 (DeiT).
    """

    def __init__(self, settings: LGViTSettings, channels: int, size: tuple[int, int]) -> None:
        s = settings
        super().__init__(
            size,
            patch=s.patch,
            channels=channels,
            mlp_ratio=s.mlp_ratio,
            width=s.width,
            depth=s.depth,
            heads=s.heads,
            drop_path=s.drop_path,
            init_std=s.init_std,
        )
        self.specials, tokens = 2 if s.distillation_token else 1, [self.class_token, self.positions]
        if s.distillation_token:
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, s.width))
            self.distillation_position = nn.Parameter(torch.zeros(1, 1, s.width))
            tokens += [self.distillation_token, self.distillation_position]
        for token in tokens:
            nn.init.trunc_normal_(token, std=s.init_std)

    def embed(self, x: Tensor, keep: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Tokens (n, S + N, C) as the first layer receives them: special tokens, then patches row by row."""
        tokens = super().embed(x, keep, masked)
        if self.specials == 1:
            return tokens
        second = (self.distillation_token + self.distillation_position).expand(len(x), -1, -1)
        return torch.cat([tokens[:, :1], second, tokens[:, 1:]], dim=1)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of images (n, channels, H, W)."""
        return x.shape[2] // self.patch, x.shape[3] // self.patch


def subsampled(tokens: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Patch tokens (n, N, C) in rows and columns 0, r, 2r, … of their grid, for a stride r: (n, M, C).

    The authors call it average pooling; its window has a size of 1, so nothing is averaged.
    """
    return tokens.reshape(len(tokens), *grid, tokens.shape[2])[:, ::stride, ::stride].flatten(1, 2)


class LocalPerception(nn.Module):
    """P + BN(Conv(BN(GELU(DWConv(BN(GELU(Conv(P)))))))) on the grid of patch tokens P.

    Args:
        width: C.
        depthwise: whether there is the depth-wise 3×3 convolution DWConv, with its GELU and BN.
        dropout: after the first BN and after the last.
    """

    def __init__(self, width: int, depthwise: bool, dropout: float = 0.0) -> None:
        super().__init__()
        stages = [nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width), nn.Dropout(dropout)]
        if depthwise:
            stages += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU(), nn.BatchNorm2d(width)]
        self.stages = nn.Sequential(*stages, nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Dropout(dropout))

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (n, N, C) → (n, N, C)."""
        maps = patches.transpose(1, 2).reshape(len(patches), patches.shape[2], *grid)
        made: Tensor = self.stages(maps).flatten(2).transpose(1, 2)
        return patches + made


class GlobalAggregation(nn.Module):
    """Self-attention among every r-th patch token of every r-th row, without residual and normalization.

    Args:
        width: C.
        heads: attention heads.
        stride: r.
    """

    def __init__(self, width: int, heads: int, stride: int) -> None:
        super().__init__()
        self.heads, self.stride = heads, stride
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens (n, N, C) → (n, M, C)."""
        kept = subsampled(patches, grid, self.stride)
        query, key, value = self.qkv(kept).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed


class Exit(nn.Module):
    """A head and its classifier: for each special token one linear map, whose logits are averaged.

    The linear map of a head with features Φ receives mean(Φ) + the special token; that of the others the normalized
    special token.

    Args:
        kind: of the head.
        settings: the method's.
        classes: K.
    """

    def __init__(self, kind: Kind, settings: LGViTSettings, classes: int) -> None:
        super().__init__()
        s, self.kind, self.specials = settings, kind, 2 if settings.distillation_token else 1
        self.classifiers = nn.ModuleList(nn.Linear(s.width, classes) for _ in range(self.specials))
        self.norm = nn.Identity() if kind in STRIDES else nn.LayerNorm(s.width, eps=1e-6)
        self.head: nn.Module = nn.Identity()
        if kind in LOCAL:
            self.head = LocalPerception(s.width, kind == "lph_dw", s.head_dropout)
        elif kind in GLOBAL:
            self.head = GlobalAggregation(s.width, s.aggregation_heads, STRIDES[kind])
        elif kind == "block":
            self.head = Block(s.width, s.heads, s.mlp_ratio, 0.0)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Seen:
        """H_i, tokens (n, S + N, C) after a layer, without normalization."""
        if self.kind in STRIDES:
            features = self.head(tokens[:, self.specials :], grid)
            pooled = tokens[:, : self.specials] + features.mean(1, keepdim=True)
        else:
            features = tokens[:, :0]
            pooled = self.norm(self.head(tokens)[:, : self.specials])
        return Seen(self.kind, mean_logits(self.classifiers, pooled), features)


class Exits(nn.ModuleDict):
    """The exits, by the number of their layer as text.

    Args:
        settings: the method's.
        classes: K.
    """

    def __init__(self, settings: LGViTSettings, classes: int) -> None:
        s = settings
        super().__init__(
            {str(layer): Exit(kind, s, classes) for layer, kind in zip(s.exits, s.head_kinds, strict=True)}
        )

    def after(self, layer: int, tokens: Tensor, grid: tuple[int, int]) -> Seen:
        """What the exit after a layer makes of the tokens (n, S + N, C) of this layer."""
        seen: Seen = self[str(layer)](tokens, grid)
        return seen


class LastClassifier(nn.Module):
    """A linear map for each special token, whose logits are averaged.

    Args:
        settings: the method's.
        classes: K.
    """

    def __init__(self, settings: LGViTSettings, classes: int) -> None:
        super().__init__()
        self.classes, self.specials = classes, 2 if settings.distillation_token else 1
        self.classifiers = nn.ModuleList(nn.Linear(settings.width, classes) for _ in range(self.specials))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, S + N, C) after the last layer, normalized for inference → logits (n, K)."""
        return mean_logits(self.classifiers, tokens[:, : self.specials])


def mean_logits(classifiers: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Logits (n, K), the mean over the S classifiers, each applied to its own of the tokens (n, S, C)."""
    return torch.stack([one(tokens[:, place]) for place, one in enumerate(classifiers)]).mean(0)


def build_networks(settings: LGViTSettings, task: Task) -> dict[str, nn.Module]:
    """The networks by role.

    Raises:
        DataError: the samples are no images with labels, or no whole number of patches fits into one.
        ConfigError: the checkpoint cannot be used.
    """
    s, shape = settings, task.input_shape
    if task.num_classes < 2:
        raise DataError("data.source", f"{task.num_classes} classes", "labeled samples of at least two classes")
    if len(shape) != 3 or shape[1] % s.patch or shape[2] % s.patch:
        found = f"samples of shape {'x'.join(map(str, shape))}"
        fix = "change data.source.size or method.patch"
        raise DataError("data.source", found, f"images whose sides are multiples of method.patch = {s.patch}", fix)
    backbone = Backbone(s, shape[0], (shape[1], shape[2]))
    if s.pretrained is not None:
        if shape[0] != 3:
            raise ConfigError("method.pretrained", s.pretrained, f"images of 3 channels, and not {shape[0]}")
        load_pretrained(backbone, s.pretrained)
    return {"backbone": backbone, "heads": Exits(s, task.num_classes), "final": LastClassifier(s, task.num_classes)}


def run_all(networks: nn.ModuleDict, x: Tensor, layers: Sequence[int]) -> Whole:
    """Images (n, channels, H, W) through all layers and through the exits after some of them."""
    backbone, heads = network(networks, "backbone", Backbone), network(networks, "heads", Exits)
    *hidden, last = backbone.hidden(x, (*layers, len(backbone.blocks)))
    grid = backbone.grid_of(x)
    seen = tuple(heads.after(layer, tokens, grid) for layer, tokens in zip(layers, hidden, strict=True))
    return Whole(seen, networks["final"](backbone.norm(last)), last)
