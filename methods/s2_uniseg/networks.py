"""S2-UniSeg's networks: backbone, adapter and projection head, twice; the student's mask decoder; centers (§3.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.heads import ProjectionHead
from fedlab.distill.prototypes import Center, sharpened
from fedlab.method import network
from fedlab.methods.s2_uniseg.settings import KINDS, BackboneSettings, S2UniSegSettings
from fedlab.models.checkpoints import load_pretrained
from fedlab.models.mask2former import STRIDES, Decoded, MaskDecoder
from fedlab.models.vit import ViT

Pyramid = tuple[Tensor, ...]
"""Maps of features of n images at the strides 4, 8, 16 and 32, (n, d, H / s, W / s) each."""


class ViTMaps(nn.Module):
    """Maps (n, d, rows, columns) of a vision transformer that sees images made smaller.

    Args:
        settings: of the backbone.
        channels: C.
    """

    def __init__(self, settings: BackboneSettings, channels: int) -> None:
        super().__init__()
        b = settings
        self.shrink = b.shrink
        self.vit = ViT(
            (b.size, b.size), patch=b.patch, channels=channels, width=b.width, depth=b.depth, heads=b.heads,
            resize="bicubic",
        )  # fmt: skip
        if b.pretrained is not None:
            load_pretrained(self.vit, b.pretrained, "method.backbone.pretrained")

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) → (n, d, H / (shrink · patch), W / (shrink · patch))."""
        small = _sized(images, (images.shape[2] // self.shrink, images.shape[3] // self.shrink))
        grid = (small.shape[2] // self.vit.patch, small.shape[3] // self.vit.patch)
        tokens: Tensor = self.vit(small)[:, 1:]
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


class Cosines(nn.Module):
    """Random cosine features √(2 / d) cos(w x / b + u) of the mean color x of each patch.

    The inner product of two patches is about exp(−‖x − y‖² / 2 b²).

    Args:
        settings: of the backbone.
        channels: C.

    Source: Rahimi & Recht 2007, "Random Features for Large-Scale Kernel Machines".
    """

    directions: Tensor
    phases: Tensor

    def __init__(self, settings: BackboneSettings, channels: int) -> None:
        super().__init__()
        self.patch = settings.patch
        self.register_buffer("directions", torch.randn(settings.width, channels) / settings.bandwidth)
        self.register_buffer("phases", 2 * math.pi * torch.rand(settings.width))

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) → (n, d, H / patch, W / patch)."""
        means = F.avg_pool2d(images, self.patch)
        angles = torch.einsum("dc,nchw->ndhw", self.directions, means) + self.phases[:, None, None]
        return math.sqrt(2 / len(self.phases)) * angles.cos()


def make_backbone(settings: BackboneSettings, channels: int) -> nn.Module:
    """The backbone of the settings."""
    return ViTMaps(settings, channels) if settings.kind == "vit" else Cosines(settings, channels)


class Adapter(nn.Module):
    """Adds what convolutions see in the image to the backbone's maps, at four strides. At the start it adds nothing.

    This is the spatial prior module of ViT-Adapter, with group instead of batch normalization, and the sum at its end.

    Args:
        channels: C.
        hidden: channels of the convolutions.
        width: d, of the backbone's maps.

    Source: Chen et al. 2023, arXiv 2205.08534.
    """

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        steps = [nn.Sequential(_halved(channels, hidden), _halved(hidden, hidden))]
        self.steps = nn.ModuleList([*steps, *(_halved(hidden, hidden) for _ in STRIDES[1:])])
        self.out = nn.ModuleList(nn.Conv2d(hidden, width, 1) for _ in STRIDES)
        for layer in self.out:
            for p in layer.parameters():
                nn.init.zeros_(p)

    def forward(self, images: Tensor, maps: Tensor) -> Pyramid:
        """Images (n, C, H, W) and the backbone's maps of them (n, d, rows, columns) → maps at all strides."""
        seen, made = images, []
        for step, out in zip(self.steps, self.out, strict=True):
            seen = step(seen)
            made.append(_sized(maps, (seen.shape[2], seen.shape[3])) + out(seen))
        return tuple(made)


class Teacher(nn.Module):
    """Adapter, projection to the decoder's width, projection head, and the backbone if it is trained.

    Args:
        settings: the method's.
        channels: C.
    """

    def __init__(self, settings: S2UniSegSettings, channels: int) -> None:
        super().__init__()
        s = settings
        if s.backbone.trained:
            self.backbone = make_backbone(s.backbone, channels)
        self.adapter = Adapter(channels, s.adapter_width, s.backbone.width)
        self.project = nn.Linear(s.backbone.width, s.decoder.width)
        self.head = ProjectionHead(s.decoder.width, s.head_widths, s.prototypes, init_std=s.init_std)

    def projected(self, pyramid: Pyramid) -> Pyramid:
        """The maps at the decoder's width, (n, D, rows, columns) each."""
        return tuple(self.project(maps.movedim(1, 3)).movedim(3, 1) for maps in pyramid)

    def logits(self, queries: Tensor, *, frozen: bool = False) -> Tensor:
        """Queries (…, D) → cosines with the prototypes (…, K); `frozen` prototypes get no gradient."""
        found: Tensor = self.head(queries, frozen=frozen).logits
        return found

    def codes(self, features: Tensor) -> Tensor:
        """Features of regions (M, d) → cosines with the prototypes (M, K)."""
        return self.logits(self.project(features))


class Student(Teacher):
    """The network that is trained: the teacher's parts, queries of two kinds, and the mask decoder.

    Args:
        settings: the method's.
        channels: C.
    """

    def __init__(self, settings: S2UniSegSettings, channels: int) -> None:
        super().__init__(settings, channels)
        d = settings.decoder
        shape = (d.instances + d.semantics, d.width)
        self.queries, self.positions = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
        self.kinds = nn.Parameter(torch.randn(len(KINDS), d.width))  # [INS] and [SEM]
        self.counts = (d.instances, d.semantics)
        sizes: dict[str, Any] = d.model_dump(exclude={"instances", "semantics"})
        self.decoder = MaskDecoder(d.width, **sizes)

    def decode(self, pyramid: Pyramid) -> Decoded:
        """Masks of images whose features an encoder has made, the student's own or the teacher's."""
        kinds = torch.cat([kind.expand(count, -1) for kind, count in zip(self.kinds, self.counts, strict=True)])
        found: Decoded = self.decoder(self.projected(pyramid), self.queries + kinds, self.positions)
        return found


class Centers(nn.Module):
    """Running centers c of the teacher's logits, one for each kind of region.

    Args:
        settings: the method's.
    """

    def __init__(self, settings: S2UniSegSettings) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(Center(settings.prototypes, settings.center_momentum) for _ in KINDS)

    @property
    def values(self) -> Tensor:
        """The centers, (2, K)."""
        return torch.stack([center.get_buffer("value") for center in self.kinds])

    def update(self, logits: Tensor, semantic: Tensor) -> None:
        """Move each center towards the mean of a batch; call it after the loss that used them.

        Args:
            logits: (M, K) of the regions of a batch.
            semantic: (M,) their kinds.
        """
        for kind, center in enumerate(self.kinds):
            rows = logits[semantic == bool(kind)]
            if isinstance(center, Center) and len(rows):
                center.update(rows.float().mean(0))


def targets_of(logits: Tensor, semantic: Tensor, centers: Tensor, temperature: float) -> Tensor:
    """Targets softmax((t − c) / τ_t) of regions (M, K), each with the center of its kind; see `sharpened`."""
    return sharpened(logits - centers[semantic.long()], logits.new_zeros(()), temperature)


def pyramid_of(networks: nn.ModuleDict, role: str, images: Tensor) -> Pyramid:
    """What the encoder of student or teacher makes of normalized images (n, C, H, W)."""
    encoder = network(networks, role, Teacher)
    if "backbone" in networks:
        with torch.no_grad():
            maps = networks["backbone"](images)
    else:
        maps = encoder.backbone(images)
    found: Pyramid = encoder.adapter(images, maps)
    return found


def _halved(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(1, outside), nn.GELU())


def _sized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps at another size, smoothed where they become smaller."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)
