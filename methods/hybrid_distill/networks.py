"""The networks: student, two teachers, and what trains a teacher (§3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedlab.distill.heads import init_linear
from fedlab.method import Task
from fedlab.methods.hybrid_distill.masks import Drop
from fedlab.methods.hybrid_distill.settings import (
    HybridSettings,
    RelationTeacher,
    TeacherSettings,
    Tower,
    check_images,
)
from fedlab.models.checkpoints import load_pretrained
from fedlab.models.vit import Block, ViT, kept_tokens, run_blocks, sincos_positions


class Shape(NamedTuple):
    """What the networks are built for.

    Args:
        channels: C.
        size: (H, W) of an image.
        patch: height and width of a patch.
        init_std: standard deviation of the initial weights.
    """

    channels: int
    size: tuple[int, int]
    patch: int
    init_std: float

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch, self.size[1] // self.patch


class Passed(NamedTuple):
    """What a student makes of images while patches are dropped.

    Args:
        entering: the tokens that enter blocks, by the number of the block from 0, (n, 1 + k, D).
        final: the tokens after the last normalization, (n, 1 + k, D).
        processed: number of tokens of an image that passed through blocks, the sum over all blocks.
    """

    entering: dict[int, Tensor]
    final: Tensor
    processed: int


class Student(ViT):
    """The network that is trained: a vision transformer that can drop patches between its blocks.

    Args:
        tower: width, depth and number of heads.
        shape: what it is built for.
    """

    def __init__(self, tower: Tower, shape: Shape) -> None:
        super().__init__(shape.size, **_sizes(tower, shape))

    def passed(self, x: Tensor, drops: Sequence[Drop] = (), blocks: Sequence[int] = ()) -> Passed:
        """Images (n, C, H, W) → tokens, where patches are dropped before blocks.

        Args:
            x: the images.
            drops: the survivors of every stage; positions are added before anything is dropped.
            blocks: the blocks, from 0, whose entering tokens are returned.
        """
        tokens, chosen = self.embed(x), {drop.block: drop.chosen for drop in drops}
        entering: dict[int, Tensor] = {}
        processed = 0
        for number, block in enumerate(self.blocks):
            if number in chosen:
                tokens = kept_tokens(tokens, chosen[number])
            if number in blocks:
                entering[number] = tokens
            processed += tokens.shape[1]
            tokens = block(tokens)
        return Passed(entering, self.norm(tokens), processed)


class Teacher(ViT):
    """A vision transformer that always sees all patches.

    Its state has the names of a student's, so that a student of an earlier run can be a teacher.

    Args:
        settings: width, depth, number of heads, and the statistics by which its images are normalized.
        shape: what it is built for.
        mean: what was subtracted from each channel of the images that it is given.
        std: what each channel was divided by after that.
    """

    shift: Tensor
    factor: Tensor

    def __init__(self, settings: TeacherSettings, shape: Shape, mean: Sequence[float], std: Sequence[float]) -> None:
        clip = settings.architecture == "clip"
        special: dict[str, Any] = {"pre_norm": clip, "activation": "quick_gelu" if clip else "gelu"}
        super().__init__(shape.size, **_sizes(settings, shape), **special)
        self._own = settings.mean is not None or settings.std is not None
        given, spread, own_mean, own_std = (
            torch.tensor(tuple(values)).reshape(1, -1, 1, 1)
            for values in (mean, std, settings.mean or mean, settings.std or std)
        )
        self.register_buffer("factor", spread / own_std, persistent=False)
        self.register_buffer("shift", (given - own_mean) / own_std, persistent=False)

    def embed(self, x: Tensor, keep: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Tokens as the first block receives them; see `ViT.embed`. Images get the teacher's own normalization."""
        return super().embed(x * self.factor + self.shift if self._own else x, keep, masked)


def _sizes(tower: Tower, shape: Shape) -> dict[str, Any]:
    return {
        "patch": shape.patch,
        "channels": shape.channels,
        "width": tower.width,
        "depth": tower.depth,
        "heads": tower.heads,
        "mlp_ratio": tower.mlp_ratio,
        "init_std": shape.init_std,
    }


class MaskedDecoder(nn.Module):
    """Restores the pixels of patches that a masked autoencoder's encoder did not see.

    Args:
        settings: of the relation teacher, which is the encoder.
        shape: what it is built for.

    Source: He et al. 2022, arXiv 2111.06377.
    """

    positions: Tensor

    def __init__(self, settings: RelationTeacher, shape: Shape) -> None:
        super().__init__()
        s, width = settings, settings.decoder_width
        self.embed = nn.Linear(s.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(shape.grid, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, s.decoder_heads, s.mlp_ratio, 0.0) for _ in range(s.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, shape.channels * shape.patch**2)
        self.apply(partial(init_linear, std=shape.init_std))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """What every patch shows, (n, N, C · patch²).

        Args:
            tokens: the encoder's tokens, the class token and those of the patches that it saw, (n, 1 + k, D).
            seen: numbers of these patches, (n, k).
        """
        embedded = self.embed(tokens)
        places = seen[..., None].expand(-1, -1, embedded.shape[2])
        hidden = self.mask_token.to(embedded.dtype).expand(len(tokens), self.positions.shape[1] - 1, -1)
        whole = torch.cat([embedded[:, :1], hidden.scatter(1, places, embedded[:, 1:])], dim=1) + self.positions
        restored: Tensor = self.pixels(self.norm(run_blocks(self.blocks, whole)))
        return restored[:, 1:]


def make_networks(s: HybridSettings, task: Task) -> dict[str, nn.Module]:
    """All networks by role; teachers come first, so that they are the same whatever the student is.

    Raises:
        DataError, ConfigError: the images or their labels do not fit; a checkpoint is missing or does not fit.
    """
    channels, height, width = check_images(s, task)
    shape, made = Shape(channels, (height, width), s.patch, s.init_std), dict[str, nn.Module]()
    for role, settings in (("relation_teacher", s.relation_teacher), ("feature_teacher", s.feature_teacher)):
        made[role] = Teacher(settings, shape, task.mean, task.std)
        if settings.pretrained:
            load_pretrained(made[role], settings.pretrained, f"method.{role}.pretrained")
    if s.relation_teacher.trained:
        made["decoder"] = MaskedDecoder(s.relation_teacher, shape)
    if s.feature_teacher.trained:
        made["classifier"] = _linear(s.feature_teacher.width, task.num_classes, s)
    made["student"], made["projector"] = Student(s.student, shape), nn.Identity()
    if s.projector == "linear":
        made["projector"] = _linear(s.student.width, s.feature_teacher.width, s)
    if s.finetune_rounds:
        made["head"] = _linear(s.student.width, task.num_classes, s)
    return made


def _linear(inputs: int, outputs: int, s: HybridSettings) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    init_linear(layer, s.init_std)
    return layer
