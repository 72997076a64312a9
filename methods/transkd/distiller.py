"""Modules that are trained with the student and not needed afterwards: CSF, PEA, GL-Mixer, Embedding Assistant.

Symbols: E_i, F_i embeddings and features of stage i (superscript S student, T teacher), m the fusion width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.models.segformer import Stages

HEADS = 8


def _fusion_conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class SelectiveFusion(nn.Module):
    """r = a₁ ⊙ x + a₂ ⊙ y, the weights a softmax over the two branches in every channel.

    Args:
        width: m.
        squeeze: L.
    """

    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(width, squeeze, 1, bias=False), nn.BatchNorm2d(squeeze), nn.ReLU())
        # batch statistics of a single vector do not exist, so a batch of one has weights of its own
        self.squeeze_one = nn.Sequential(nn.Conv2d(width, squeeze, 1, bias=False), nn.ReLU())
        self.branches = nn.ModuleList(nn.Conv2d(squeeze, width, 1) for _ in range(2))

    def attention(self, x: Tensor, y: Tensor) -> Tensor:
        """(2, B, m, 1, 1) weights of x and y (B, m, H, W), which sum to 1 over the first axis."""
        u = F.adaptive_avg_pool2d(x + y, 1)
        z = self.squeeze_one(u) if len(u) == 1 else self.squeeze(u)
        return torch.stack([branch(z) for branch in self.branches]).softmax(dim=0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = self.attention(x, y)
        return a[0] * x + a[1] * y


class CrossSelectiveFusion(nn.Module):
    """CSF: the student's features, fused from the deepest stage up, in the teacher's widths.

    Args:
        student: C_i^S.
        teacher: C_i^T.
        width: m.
        squeeze: L.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], width: int, squeeze: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(_fusion_conv(channels, width, 1) for channels in student)
        self.fusions = nn.ModuleList(SelectiveFusion(width, squeeze) for _ in student[:-1])
        self.outputs = nn.ModuleList(_fusion_conv(width, channels, 3) for channels in teacher)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """F_i^S (B, C_i^S, H_i, W_i) → O_i (B, C_i^T, H_i, W_i); r_i is what the stage above receives, not O_i."""
        x = [layer(f) for layer, f in zip(self.inputs, features, strict=True)]
        r = x[-1]
        fused = [self.outputs[-1](r)]
        for i in reversed(range(len(x) - 1)):
            r = self.fusions[i](x[i], F.interpolate(r, size=x[i].shape[2:], mode="nearest"))
            fused.append(self.outputs[i](r))
        return tuple(reversed(fused))


class GLMixer(nn.Module):
    """E' = α_g · MHSA(E) + α_l · [Conv_a(E) ⊙ sigmoid(Conv_b(E))], along the tokens of the last stage.

    Args:
        dim: C_4^S.
        residual: add E.
    """

    def __init__(self, dim: int, residual: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.projection = nn.Linear(dim, dim)
        self.value = nn.Conv1d(dim, dim, 3, padding=1)
        self.gate = nn.Conv1d(dim, dim, 3, padding=1)
        self.alpha_global = nn.Parameter(torch.tensor(0.5))
        self.alpha_local = nn.Parameter(torch.tensor(0.5))
        self.residual = residual

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        batch, tokens, dim = embeddings.shape
        heads = self.qkv(embeddings).reshape(batch, tokens, 3, HEADS, dim // HEADS)
        attended = F.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4))
        attended = attended.transpose(1, 2).reshape(batch, tokens, dim)
        along = embeddings.transpose(1, 2)
        local = (self.value(along) * self.gate(along).sigmoid()).transpose(1, 2)
        mixed: Tensor = self.alpha_global * self.projection(attended) + self.alpha_local * local
        return mixed + embeddings if self.residual else mixed


class PatchEmbedding(nn.Module):
    """Overlapping patches by convolution, then LayerNorm: images or features (B, C, H, W) → (B, N, C')."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        nn.init.normal_(self.conv.weight, 0, math.sqrt(2 / (kernel**2 * outputs)))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # Conv2d types its bias as optional
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        return normed


class EmbeddingAssistant(nn.Module):
    """Ê_i = a_i · Linear_i(E_i^S) + b_i · G_i, G_i a second patch embedding of what stage i of the student receives.

    Args:
        student: C_i^S.
        teacher: C_i^T.
        channels: of the images.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], channels: int) -> None:
        super().__init__()
        inputs = (channels, *student[:-1])
        kernels, strides = (7, 3, 3, 3), (4, 2, 2, 2)
        self.patches = nn.ModuleList(map(PatchEmbedding, inputs, teacher, kernels, strides))
        self.own = nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        self.assistant = nn.Parameter(torch.tensor([0.5, 0.6, 0.7, 0.8]))

    def forward(self, stage: int, aligned: Tensor, received: Tensor) -> Tensor:
        """Ê of a stage (from 0).

        Args:
            aligned: Linear_i(E_i^S), (B, N_i, C_i^T).
            received: x or F_{i−1}^S.
        """
        assisted: Tensor = self.own[stage] * aligned + self.assistant[stage] * self.patches[stage](received)
        return assisted


class Targets(NamedTuple):
    """The student's features that are compared with the teacher's.

    Args:
        features: O_i, empty without CSF.
        embeddings: Ê_i by stage from 0, for the stages that are aligned.
    """

    features: tuple[Tensor, ...]
    embeddings: Mapping[int, Tensor]


class Distiller(nn.Module):
    """Maps the student's features to the spaces of the teacher's.

    Args:
        student: C_i^S.
        teacher: C_i^T.
        fusion: CSF, or None.
        stages: whose embeddings are aligned, from 0.
        mixer: GL, applied to the last stage's embeddings, or None.
        assistant: EA, or None.
    """

    def __init__(
        self,
        student: tuple[int, ...],
        teacher: tuple[int, ...],
        fusion: CrossSelectiveFusion | None,
        stages: tuple[int, ...],
        mixer: GLMixer | None = None,
        assistant: EmbeddingAssistant | None = None,
    ) -> None:
        super().__init__()
        self.fusion, self.mixer, self.assistant = fusion, mixer, assistant
        self.alignment = nn.ModuleDict({str(i): nn.Linear(student[i], teacher[i]) for i in stages})

    def forward(self, images: Tensor, seen: Stages) -> Targets:
        """The student's stages on `images` (B, C, H, W), as the teacher would say them."""
        embeddings = {int(stage): self._aligned(int(stage), images, seen) for stage in self.alignment}
        return Targets(self.fusion(seen.features) if self.fusion is not None else (), embeddings)

    def _aligned(self, stage: int, images: Tensor, seen: Stages) -> Tensor:
        own = seen.embeddings[stage]
        if self.mixer is not None and stage == len(seen.embeddings) - 1:
            own = self.mixer(own)
        aligned: Tensor = self.alignment[str(stage)](own)
        if self.assistant is None:
            return aligned
        assisted: Tensor = self.assistant(stage, aligned, seen.features[stage - 1] if stage else images)
        return assisted
