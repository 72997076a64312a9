"""ASiT's networks: one transformer with a projection head, twice; reconstruction; centers; the classifier."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.heads import PatchDecoder, init_linear, layers
from fedlab.distill.prototypes import Center, Prototypes
from fedlab.methods.asit.settings import ASiTSettings
from fedlab.models.vit import ViT


class Logits(NamedTuple):
    """Cosines with the prototypes: of class tokens (n, K_c), of all patch tokens (n · N, K_p)."""

    classes: Tensor
    patches: Tensor


class ProjectionHead(nn.Module):
    """One MLP shared by class and patch tokens, L2 normalization, and prototypes of their own (§3.3).

    Args:
        settings: the method's.
    """

    def __init__(self, settings: ASiTSettings) -> None:
        super().__init__()
        s = settings
        self.mlp = layers(s.width, (s.hidden, s.hidden, s.bottleneck))
        self.classes = Prototypes(s.bottleneck, s.class_prototypes)
        self.patches = Prototypes(s.bottleneck, s.patch_prototypes)

    def forward(self, tokens: Tensor, *, frozen: bool = False) -> Logits:
        """Tokens (n, 1 + N, D) → logits; `frozen` prototypes get no gradient."""
        z = F.normalize(self.mlp(tokens), dim=-1)
        return Logits(self.classes(z[:, 0], frozen=frozen), self.patches(z[:, 1:].flatten(0, 1), frozen=frozen))


class Teacher(nn.Module):
    """Backbone and projection head. In the authors' code there is also a reconstruction head that is never called.

    Args:
        settings: the method's.
        input_size: (frames, M) of a view.
        drop_path: stochastic depth.
    """

    def __init__(self, settings: ASiTSettings, input_size: tuple[int, int], drop_path: float = 0.0) -> None:
        super().__init__()
        self.backbone = make_backbone(settings, input_size, drop_path)
        self.projection = ProjectionHead(settings)

    def forward(self, x: Tensor) -> Logits:
        """(n, frames, M) → logits."""
        logits: Logits = self.projection(self.backbone(x[:, None]))
        return logits


class Student(Teacher):
    """The network that is trained: the teacher's parts with stochastic depth, and the reconstruction head.

    Args:
        settings: the method's.
        input_size: (frames, M) of a view.
    """

    def __init__(self, settings: ASiTSettings, input_size: tuple[int, int]) -> None:
        super().__init__(settings, input_size, settings.drop_path)
        s = settings
        self.reconstruction = PatchDecoder(s.width, s.patch, 1, (s.width, s.width, s.reconstruction_width))

    def outputs(self, x: Tensor, *, frozen: bool = False) -> tuple[Logits, Tensor]:
        """(n, frames, M) → logits, and the reconstruction (n, frames, M)."""
        tokens = self.backbone(x[:, None])
        return self.projection(tokens, frozen=frozen), self._reconstructed(tokens, x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """(n, frames, M) → (n, frames, M)."""
        return self._reconstructed(self.backbone(x[:, None]), x)

    def _reconstructed(self, tokens: Tensor, x: Tensor) -> Tensor:
        patch = self.backbone.patch
        reconstructed: Tensor = self.reconstruction(tokens[:, 1:], (x.shape[1] // patch, x.shape[2] // patch))
        return reconstructed[:, 0]


class Centers(nn.Module):
    """Running centers c_c and c_p of the teacher's logits (§3.4).

    Args:
        settings: the method's.
    """

    def __init__(self, settings: ASiTSettings) -> None:
        super().__init__()
        self.classes = Center(settings.class_prototypes, settings.center_momentum)
        self.patches = Center(settings.patch_prototypes, settings.center_momentum)


class Tagger(nn.Module):
    """A backbone and a linear classifier on its class token or mean token (§3.6).

    Args:
        settings: the method's.
        input_size: (frames, M) of a view.
        num_classes: K.
    """

    def __init__(self, settings: ASiTSettings, input_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        s = settings
        self.pool = s.finetune_pool
        self.backbone = make_backbone(s, input_size, s.drop_path)
        narrow = s.finetune_projector
        layers = [nn.Linear(s.width, narrow), nn.Linear(narrow, num_classes)] if narrow else []
        self.head = nn.Sequential(*layers or [nn.Linear(s.width, num_classes)])
        self.head.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(n, frames, M), frames any multiple of the patch → logits (n, K)."""
        tokens = self.backbone(x[:, None])
        logits: Tensor = self.head(tokens[:, 0] if self.pool == "class" else tokens.mean(1))
        return logits


def make_backbone(settings: ASiTSettings, input_size: tuple[int, int], drop_path: float) -> ViT:
    """The transformer for views of (frames, M)."""
    s = settings
    return ViT(input_size, patch=s.patch, width=s.width, depth=s.depth, heads=s.heads, drop_path=drop_path)
