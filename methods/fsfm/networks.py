"""FSFM's networks: encoder, two decoders with one mask token, projector, predictor (§3.3); the classifier (§3.6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.heads import ProjectionHead
from fedlab.methods.fsfm.settings import FSFMSettings
from fedlab.models.vit import Block, ViT, run_blocks, sincos_positions

_EPS = 1e-6


class Normalizer(nn.Module):
    """Pictures in [0, 1] → (x − mean) / std by channel.

    Args:
        mean: of each channel, or one number for all.
        std: likewise.
        channels: C.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).expand(channels).clone()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → (n, C, H, W)."""
        return (x - self.mean) / self.std

    @torch.no_grad()
    def set(self, sums: Tensor) -> None:
        """Take mean and deviation from `image_sums`; a channel of one value keeps the deviation that it has."""
        count, total, squares = sums
        if float(count.min()) > 0:
            mean = total / count
            variance = squares / count - mean.square()
            self.mean.copy_(mean[:, None, None])
            self.std.copy_(torch.where(variance > 0, variance.clamp(min=0).sqrt(), self.std.flatten())[:, None, None])


def image_sums(batches: Iterable[Tensor], channels: int) -> Tensor:
    """Number, sum and sum of squares of the values of each channel of pictures (n, C, H, W), (3, C) float64."""
    sums = torch.zeros(3, channels, dtype=torch.float64)
    for images in batches:
        x = images.double()
        totals = torch.stack([torch.ones_like(x).sum((0, 2, 3)), x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
        sums = sums + torch.as_tensor(totals, device="cpu")
    return sums


class TokenDecoder(nn.Module):
    """Blocks over the tokens of all places, where hidden ones are a mask token (§3.3).

    Args:
        grid: rows and columns of patches.
        inside: width of the encoder's tokens.
        width: of the decoder's tokens.
        depth: number of blocks.
        heads: number of attention heads.
        outputs: values for each place.
        mask_first: whether mask tokens are inserted before the linear layer at the entrance, or after it.
    """

    positions: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        inside: int,
        width: int,
        depth: int,
        heads: int,
        outputs: int,
        mask_first: bool,
    ) -> None:
        super().__init__()
        self._mask_first = mask_first
        self.embed = nn.Linear(inside, width)
        # fixed, so it is no part of the state that travels
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, 4, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.out = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor, mask_token: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Tokens (n, 1 + k, D) of visible places, or of all where `visible` is None → (n, 1 + N, outputs).

        Args:
            tokens: class token first.
            mask_token: (1, 1, width of the tokens where it is inserted).
            visible: (n, k), the places of the tokens, see `Masks.visible`.
        """
        if self._mask_first:
            tokens = self.embed(_completed(tokens, mask_token, visible, self.positions.shape[1]))
        else:
            tokens = _completed(self.embed(tokens), mask_token, visible, self.positions.shape[1])
        made: Tensor = self.out(self.norm(run_blocks(self.blocks, tokens + self.positions)))
        return made


def _completed(tokens: Tensor, mask_token: Tensor | None, visible: Tensor | None, length: int) -> Tensor:
    """The tokens at their places, and the mask token at all others."""
    if visible is None or mask_token is None:
        return tokens
    places = visible[..., None].expand(-1, -1, tokens.shape[2])
    empty = mask_token.to(tokens.dtype).expand(len(tokens), length - 1, -1)
    return torch.cat([tokens[:, :1], empty.scatter(1, places, tokens[:, 1:])], dim=1)


class Encoded(NamedTuple):
    """What the online network makes of masked faces.

    Args:
        pixels: standardized pixels of every patch, (n, N, C · patch²).
        prediction: z_o, (n, d); None if it was not asked for.
    """

    pixels: Tensor
    prediction: Tensor | None


class Target(nn.Module):
    """Encoder, representation decoder and projector: what the online network and its moving average have in common.

    Args:
        settings: the method's.
        size: height and width of the pictures.
        channels: C.
    """

    def __init__(self, settings: FSFMSettings, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        s = settings
        self.encoder = _encoder(s, size, channels)
        self.rep_decoder = TokenDecoder(self.encoder.grid, s.width, s.width, s.rep_depth, s.rep_heads, s.width, False)
        self.projector = ProjectionHead(s.width, s.projector, norm="layer", activation="relu", normalize=False)
        self.apply(_xavier)

    def representation(self, tokens: Tensor, mask_token: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """The mean over all N + 1 tokens of the representation decoder, (n, D)."""
        made: Tensor = self.rep_decoder(tokens, mask_token, visible)
        return made.mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """z_t of whole pictures (n, C, H, W) → (n, d)."""
        projected: Tensor = self.projector(self.representation(self.encoder(x))).bottleneck
        return projected


class Student(Target):
    """The online network: beside the target's parts the predictor, the pixel decoder and one mask token for both.

    Args:
        settings: the method's.
        size: height and width of the pictures.
        channels: C.
    """

    def __init__(self, settings: FSFMSettings, size: tuple[int, int], channels: int) -> None:
        super().__init__(settings, size, channels)
        s, values = settings, channels * settings.patch**2
        self.pixel_decoder = TokenDecoder(
            self.encoder.grid, s.width, s.pixel_width, s.pixel_depth, s.pixel_heads, values, True
        )
        self.predictor = ProjectionHead(s.projector[-1], s.predictor, norm="layer", activation="relu", normalize=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, s.width))
        for part in (self.pixel_decoder, self.predictor):
            part.apply(_xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def masked(self, x: Tensor, visible: Tensor, predict: bool = True) -> Encoded:
        """Faces (n, C, H, W) of which only the patches `visible` (n, k) are seen."""
        tokens = self.encoder(x, visible)
        pixels: Tensor = self.pixel_decoder(tokens, self.mask_token, visible)[:, 1:]
        if not predict:
            return Encoded(pixels, None)
        projected = self.projector(self.representation(tokens, self.mask_token, visible)).bottleneck
        return Encoded(pixels, self.predictor(projected).bottleneck)


class Classifier(nn.Module):
    """The pre-trained encoder without its last normalization, a new one, and a head for real against fake (§3.6).

    Args:
        settings: the method's.
        size: height and width of the pictures.
        channels: C.
        classes: number of classes.
    """

    def __init__(self, settings: FSFMSettings, size: tuple[int, int], channels: int, classes: int) -> None:
        super().__init__()
        tuning = settings.finetune
        self.encoder = _encoder(settings, size, channels, tuning.drop_path)
        self.encoder.apply(_xavier)
        # never used here, so it neither travels nor decays
        self.encoder.norm = nn.Identity()  # type: ignore[assignment]  # declared as the LayerNorm that it replaces
        self.fc_norm = nn.LayerNorm(settings.width, eps=_EPS)
        self.head: nn.Module
        if tuning.head == "linear":
            self.head = nn.Linear(settings.width, classes)
            nn.init.trunc_normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)
        else:
            self.head = Bottleneck(settings.width, tuning.bottleneck, classes, tuning.dropout)

    def features(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → (n, D): the normalized mean of the patch tokens, without the class token."""
        pooled: Tensor = self.fc_norm(self.tokens(x).mean(dim=1))
        return pooled

    def tokens(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → patch tokens of the last block (n, N, D)."""
        return self.encoder.run(self.encoder.embed(x))[:, 1:]

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → logits (n, K)."""
        logits: Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def take_over(self, encoder: ViT) -> None:
        """Start from the weights of a pre-trained encoder, all but its last normalization."""
        own = self.encoder.state_dict()
        self.encoder.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in own})


class OperatingPoint(nn.Module):
    """The threshold that was chosen on the clients' validation samples; negative before it is."""

    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.full((), -1.0, dtype=torch.float64))

    @property
    def chosen(self) -> float | None:
        """The threshold; None before one is chosen."""
        value = float(self.threshold)
        return value if value >= 0 else None


class Bottleneck(nn.Module):
    """A layer to `width` with ReLU and dropout, features scaled to the root of their length, weights of length 1.

    Args:
        inside: D.
        width: of the layer.
        classes: number of classes.
        dropout: rate.

    Source: §3.6; the scaling as in Jia et al. 2020, arXiv 2004.14043 (SSDG), from memory.
    """

    def __init__(self, inside: int, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(inside, width), nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.normal_(self.layer.weight, std=0.005)
        nn.init.constant_(self.layer.bias, 0.1)
        nn.init.normal_(self.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) → logits (n, K)."""
        x = self.dropout(F.relu(self.layer(features)))
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)
        return F.linear(x / (2 * length).sqrt(), F.normalize(self.weight, dim=1))


def _encoder(s: FSFMSettings, size: tuple[int, int], channels: int, drop_path: float = 0.0) -> ViT:
    return ViT(
        size,
        positions="sincos",
        drop_path=drop_path,
        depth=s.depth,
        width=s.width,
        heads=s.heads,
        channels=channels,
        patch=s.patch,
    )


def _xavier(module: nn.Module) -> None:
    """Xavier-uniform weights of linear layers and of the patch projection, as in MAE; the heads' are no exception."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.detach().view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
