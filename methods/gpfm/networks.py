"""GPFM's networks: backbone and prototype head, twice; a distillation head for each expert; two centers (§3.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedlab.distill.heads import ProjectionHead
from fedlab.distill.param_groups import decayed, layerwise
from fedlab.distill.prototypes import Center
from fedlab.methods.gpfm.settings import EXPERTS, GPFMSettings
from fedlab.models.vit import ViT


class Encoder(nn.Module):
    """Backbone and prototype head; one head serves class tokens and patches. Student and teacher are one each.

    Args:
        settings: the method's.
        channels: C.
        drop_path: stochastic depth.
    """

    def __init__(self, settings: GPFMSettings, channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        s = settings
        self.backbone = ViT(
            (s.views.size, s.views.size),
            channels=channels,
            patch=s.patch,
            width=s.width,
            heads=s.heads,
            depth=s.depth,
            drop_path_rule="constant",
            drop_path=drop_path,
            resize="bicubic",
            layer_scale=s.layer_scale,
            mask_token=True,
            init_std=s.init_std,
        )
        self.head = ProjectionHead(s.width, s.head_widths, s.prototypes, init_std=s.init_std)

    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens (…, D) → logits over prototypes (…, K)."""
        projected: Tensor = self.head(tokens).logits
        return projected


class Centers(nn.Module):
    """Running centers c of the teacher's logits, one for class tokens and one for patches.

    Args:
        settings: the method's.
    """

    def __init__(self, settings: GPFMSettings) -> None:
        super().__init__()
        self.classes = Center(settings.prototypes, settings.center_momentum)
        self.patches = Center(settings.prototypes, settings.center_momentum)

    def update(self, classes: Tensor, patches: Tensor) -> None:
        """Move both towards the means of a step's logits, (n, K) and (M, K); call it after the loss that used them."""
        self.classes.update(classes.float().mean(0))
        if len(patches):
            self.patches.update(patches.float().mean(0))


def distillation_heads(settings: GPFMSettings) -> nn.ModuleDict:
    """A head for each expert, which its class tokens and patches share: linear, L2 norm, weight-normalized linear."""
    s = settings
    return nn.ModuleDict(
        {
            name: ProjectionHead(s.width, (s.expert_width,), expert.dim, init_std=s.init_std)
            for name, expert in s.experts.items()
        }
    )


def imitated(heads: nn.Module, name: str, tokens: Tensor) -> Tensor:
    """Tokens (…, D) of the student → (…, d) by the head of an expert; its elements are cosines."""
    made: Tensor = heads.get_submodule(name)(tokens).logits
    return made


def parameter_groups(settings: GPFMSettings, student: Encoder, heads: nn.Module) -> list[dict[str, Any]]:
    """Groups of the optimizer (§3.4): backbone and prototype head are clipped apart, heads of experts not at all.

    Layers of the backbone learn the slower the nearer they are to the input. The prototypes of all heads are in groups
    of their own, with ``rests``, because they rest at the beginning of training.

    Args:
        settings: the method's.
        student: backbone and prototype head.
        heads: the heads of the experts.
    """
    s = settings
    last = {p for part in (student, heads) for name, p in part.named_parameters() if "prototypes" in name}
    groups = [
        {**group, "clip_with": name, "clip_norm": limit}
        for name, limit, parts in (
            ("backbone", s.clip_norm, layerwise(student.backbone, s.layer_decay, s.patch_factor)),
            ("head", s.clip_norm, decayed(student.head)),
            (EXPERTS, None, decayed(heads)),
        )
        for group in parts
    ]
    parted = [
        {**group, "params": [p for p in group["params"] if (p in last) is rests], "rests": rests}
        for group in groups
        for rests in (False, True)
    ]
    return [group for group in parted if group["params"]]
