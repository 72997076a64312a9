"""MMC's networks: one transformer with a patch head and a contrast head, twice; reconstruction; centers (§3.2)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from fedlab.distill.heads import Activation, PatchDecoder, ProjectionHead
from fedlab.distill.prototypes import Center
from fedlab.methods.mmc.settings import MMCSettings
from fedlab.models.vit import ViT


class Encoded(NamedTuple):
    """What a network makes of n views.

    Args:
        tokens: (n, 1 + N, D) after the final normalization, class token first.
        patches: logits of the patch tokens, (n, N, K).
        classes: logits of the class tokens by the same head, (n, K).
        contrast: features of the class tokens for the contrast, (n, d).
    """

    tokens: Tensor
    patches: Tensor
    classes: Tensor
    contrast: Tensor


class Teacher(nn.Module):
    """Backbone, patch head and contrast head. A teacher has no reconstruction head, because nothing would call it.

    Args:
        settings: the method's.
        channels: C.
        drop_path: stochastic depth.
    """

    def __init__(self, settings: MMCSettings, channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        s, size = settings, (settings.views.size, settings.views.size)
        self.backbone = ViT(
            size,
            patch=s.patch,
            channels=channels,
            width=s.width,
            depth=s.depth,
            heads=s.heads,
            drop_path=drop_path,
            init_std=s.init_std,
        )
        self.patch_head = ProjectionHead(s.width, s.patch_widths, s.prototypes, init_std=s.init_std)
        # relu first and gelu after it, as in SiT's CLSHead
        kinds: list[Activation] = ["gelu" if index else "relu" for index in range(len(s.contrast_widths) - 1)]
        self.contrast_head = ProjectionHead(
            s.width,
            s.contrast_widths,
            norm="batch",
            activation=kinds,
            last_norm=True,
            normalize=False,
            init_std=s.init_std,
        )

    def forward(self, x: Tensor) -> Encoded:
        """Views (n, C, H, W) → tokens and what the heads make of them."""
        tokens = self.backbone(x)
        logits = self.patch_head(tokens).logits
        return Encoded(tokens, logits[:, 1:], logits[:, 0], self.contrast_head(tokens[:, 0]).bottleneck)

    def track_statistics(self, track: bool) -> None:
        """Whether running statistics move in training mode; the heads normalize over the batch in either case."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.track_running_stats = track


class Student(Teacher):
    """The network that is trained: the teacher's parts with stochastic depth, a reconstruction head, and a predictor.

    Args:
        settings: the method's.
        channels: C.
    """

    def __init__(self, settings: MMCSettings, channels: int) -> None:
        super().__init__(settings, channels, settings.drop_path)
        s = settings
        self.decoder = PatchDecoder(s.width, s.patch, channels, s.decoder_widths, init_std=s.init_std)
        self.predictor: nn.Module = nn.Identity()
        if s.predictor:
            self.predictor = ProjectionHead(
                s.contrast_widths[-1],
                s.predictor,
                norm="batch",
                activation="relu",
                last_norm=True,
                normalize=False,
                init_std=s.init_std,
            )

    def queries(self, contrast: Tensor) -> Tensor:
        """Features of class tokens (n, d) → queries (n, d), by the predictor if there is one."""
        made = self.predictor(contrast)
        return made if isinstance(made, Tensor) else made.bottleneck

    def small_queries(self, x: Tensor) -> Tensor:
        """Small views (n, C, h, w) → queries (n, d)."""
        return self.queries(self.contrast_head(self.backbone(x)[:, 0]).bottleneck)

    def reconstructed(self, tokens: Tensor) -> Tensor:
        """Tokens (n, 1 + N, D) of global views → (n, C, H, W)."""
        pixels: Tensor = self.decoder(tokens[:, 1:], self.backbone.grid)
        return pixels


class Centers(nn.Module):
    """Running centers c of the teacher's logits: of those that teach patches, and of class tokens in the form `shared`.

    Args:
        settings: the method's.
    """

    def __init__(self, settings: MMCSettings) -> None:
        super().__init__()
        s = settings
        self._kind = s.global_to_local
        self.patches = Center(s.prototypes, s.center_momentum)
        self.classes = Center(s.prototypes, s.center_momentum) if self._kind == "shared" else None

    def teaching(self, encoded: Encoded) -> Tensor:
        """The teacher's logits that teach the patches, (n, N, K): those of the same patch, or of the class token."""
        if self._kind == "cls_to_patch":
            return encoded.classes[:, None].expand_as(encoded.patches)
        return encoded.patches

    def update(self, encoded: Encoded) -> None:
        """Move the centers towards the means of a batch; call it after the loss that used them."""
        self.patches.update(self.teaching(encoded).float().mean((0, 1)))
        if self.classes is not None:
            self.classes.update(encoded.classes.float().mean(0))
