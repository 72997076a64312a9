"""How the platform trains teachers, on the server or on clients: by masked pixels, and by labels (§6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.pretrain import train_on_server
from fedlab.distill.param_groups import decayed
from fedlab.distill.patches import masked_patch_error, patchify, standardized
from fedlab.distill.views import draw_views, take_views
from fedlab.errors import ConfigError, DataError
from fedlab.method import Batch, ServerContext
from fedlab.methods.hybrid_distill.masks import lowest
from fedlab.methods.hybrid_distill.settings import HybridSettings

SAMPLES = "teacher"
"""The server's sample set on which it trains teachers."""
BESIDE = {"relation_teacher": "decoder", "feature_teacher": "classifier", "student": "head"}
"""The network that a backbone is trained with, if it is trained by masked pixels or by labels."""

_SHARED = {"patch", "crop", "flip", "pooling"}  # settings outside of a teacher's own on which its training depends


def training_views(s: HybridSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """One view of each image, the same for teachers and student, and a random number for each patch in ``order``."""
    images = batch["image"]
    count, _, height, width = images.shape
    if s.crop[0] < 1 or s.flip:
        drawn = draw_views(count, (height, width), generator, scale=s.crop, flip=s.flip)
        images = take_views(images, drawn, mode="bicubic")
    order = torch.rand(count, height // s.patch * (width // s.patch), generator=generator)
    return {**batch, "image": images, "order": torch.as_tensor(order, device=images.device)}


def pooled(s: HybridSettings, tokens: Tensor) -> Tensor:
    """Tokens (n, 1 + N, D) → features of the images (n, D)."""
    return tokens[:, 0] if s.pooling == "class" else tokens[:, 1:].mean(1)


def restored(s: HybridSettings, networks: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What a masked autoencoder makes of images of which it sees some patches, which ``order`` chooses.

    Returns:
        The standardized pixels that it makes of every patch, those that it should make, (n, N, C · patch²) each, and
        which patches were hidden, (n, N).
    """
    x, order = batch["image"], batch["order"]
    seen = lowest(order, max(1, round((1 - s.relation_teacher.mask_ratio) * order.shape[1])))
    hidden = torch.ones_like(order, dtype=torch.bool).scatter(1, seen, False)
    made = networks["decoder"](networks["relation_teacher"](x, seen), seen)
    return made, standardized(patchify(x, s.patch)), hidden


def masked_loss(s: HybridSettings, networks: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
    """The loss of the relation teacher, a masked autoencoder (He et al. 2022, arXiv 2111.06377)."""
    return {"mae": masked_patch_error(*restored(s, networks, batch))}


def label_loss(s: HybridSettings, networks: nn.ModuleDict, batch: Batch, role: str) -> dict[str, Tensor]:
    """Cross-entropy of a linear classifier of a backbone's features: of the feature teacher, or of the student."""
    return {"ce": F.cross_entropy(logits(s, networks, batch["image"], role).float(), batch["label"])}


def logits(s: HybridSettings, networks: nn.ModuleDict, x: Tensor, role: str) -> Tensor:
    """Images (n, C, H, W) → logits (n, K) of the classifier of a backbone."""
    found: Tensor = networks[BESIDE[role]](pooled(s, networks[role](x)))
    return found


def train_teachers(ctx: ServerContext, s: HybridSettings) -> None:
    """Train on the server whichever teacher is to be trained there, or load the result of an equal earlier run.

    Raises:
        ConfigError: the server holds no samples for this.
        DataError: the samples have no labels, and the feature teacher learns these.
    """

    def by_labels(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return label_loss(s, cast(nn.ModuleDict, module), batch, "feature_teacher")

    def by_pixels(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return masked_loss(s, cast(nn.ModuleDict, module), batch)

    losses: dict[str, Callable[[nn.Module, Batch], dict[str, Tensor]]] = {
        "relation_teacher": by_pixels, "feature_teacher": by_labels,
    }  # fmt: skip
    for role, loss in losses.items():
        teacher = getattr(s, role)
        if not teacher.steps:
            continue
        samples = _samples(ctx, role, teacher.steps)
        train_on_server(
            ctx,
            nn.ModuleDict({name: ctx.networks[name] for name in (role, BESIDE[role])}),
            samples,
            loss,
            name=f"hybrid-{role.replace('_', '-')}",
            key={**s.model_dump(mode="json", include=_SHARED), role: teacher.model_dump(mode="json")},
            steps=teacher.steps,
            batch_size=teacher.batch_size,
            lr=teacher.lr,
            augment=lambda batch, generator: training_views(s, batch, generator),
            params=decayed,
        )


def _samples(ctx: ServerContext, role: str, steps: int) -> Mapping[str, Tensor]:
    if SAMPLES not in ctx.data:
        held = ", ".join(ctx.data) or "none"
        fix = f"hold some out with data.held.{SAMPLES}, or train the teacher in rounds; the server's sets are: {held}"
        raise ConfigError(f"method.{role}.steps", steps, f"a server sample set {SAMPLES!r}", fix)
    columns = ctx.data[SAMPLES]
    if role == "feature_teacher" and "label" not in columns:
        raise DataError(f"server data {SAMPLES!r}", "no labels", "labels, which the feature teacher learns")
    return columns
