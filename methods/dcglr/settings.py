"""Settings of DCGLR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fedlab.blocks.teacher import EmaTeacher
from fedlab.config import Positive, Section
from fedlab.distill.schedules import cosine
from fedlab.errors import ConfigError, DataError

Share = Annotated[float, Field(ge=0, le=1)]
_SMALLEST_BATCH = 16


def _ordered(shares: tuple[Share, Share]) -> tuple[Share, Share]:
    if not 0 < shares[0] <= shares[1]:
        raise ValueError("two shares above 0, the smaller first")
    return shares


Shares = Annotated[tuple[Share, Share], AfterValidator(_ordered)]


class DCGLRSettings(Section):
    """Settings of DCGLR; defaults are those of the closest published code, for ShapeNet."""

    # views
    global_crop: Shares = Field(
        default=(0.5, 0.9), description="smallest and largest share of a shape in a global view; there are two of them"
    )
    local_views: int = Field(default=8, ge=0, description="number of local views; 0: none, an ablation")
    local_crop: Shares = Field(default=(0.2, 0.5), description="smallest and largest share of a shape in a local view")
    filled: Share = Field(
        default=0.9, gt=0, description="size, as a share of a shape's points, to which every crop is completed"
    )
    local_size: Share = Field(
        default=0.5,
        gt=0,
        description="points of a local view, as a share of a shape's points, drawn from the completed crop",
    )
    resolutions: tuple[Positive, ...] = Field(
        default=(512, 256, 128, 64),
        description="numbers of points of further views of whole shapes, two views of each; []: no such views",
    )
    resolution_shift: float = Field(
        default=1.0, ge=0, description="largest shift of such a view along each axis; 1 shifts far beyond the unit ball"
    )
    rotation: Literal["none", "up", "any"] = Field(
        default="none",
        description="rotation of each view: none, as for aligned shapes; up: about the third axis; any: any rotation",
    )
    weak_second: bool = Field(default=False, description="the second global view has less jitter, scale and shift")
    # networks
    backbone: Literal["pointnet", "dgcnn", "vit"] = "pointnet"
    width: Positive = Field(default=192, description="length D of a shape's features")
    pointnet_widths: tuple[Positive, ...] = Field(
        default=(64, 64, 64, 128), description="PointNet's layers before the last"
    )
    neighbors: Positive = Field(default=20, description="DGCNN's number of neighbors of a point, with the point itself")
    depth: Positive = Field(default=4, description="the transformer's number of blocks")
    heads: Positive = Field(default=4, description="the transformer's number of attention heads, a divisor of width")
    hidden: Positive = Field(default=2048, description="width of the two hidden layers of the projection head")
    bottleneck: Positive = Field(default=256, description="width of the features that are compared with the prototypes")
    prototypes: int = Field(default=512, ge=2, description="number of prototypes, K")
    # losses
    distillation_weight: float = Field(default=1.0, ge=0, description="weight of L_KD; 0: contrast only, an ablation")
    contrast: Literal["infonce", "npair"] = Field(
        default="infonce", description="form of the contrastive term; the paper's own form is not known"
    )
    contrast_weight: float | None = Field(
        default=None, ge=0, description="weight of L_con; default: 1 for infonce, 0.01 for npair; 0: distillation only"
    )
    contrast_temperature: float = Field(default=0.1, gt=0, description="temperature of infonce, τ_c")
    student_temperature: float = Field(default=0.1, gt=0, description="temperature of the student, τ_s")
    teacher_temperature: float = Field(default=0.04, gt=0, description="temperature of the teacher, τ_t")
    center_momentum: Share = 0.9
    # schedules; training.lr is the peak
    epochs: Positive = Field(default=300, description="number of equal parts of the training for the next two settings")
    warmup_epochs: int = Field(default=20, ge=0, description="epochs in which the learning rate rises linearly")
    freeze_prototypes_epochs: int = Field(default=1, ge=0, description="epochs in which the prototypes are not trained")
    final_lr: float = Field(default=1e-5, ge=0, description="learning rate at the end of its cosine schedule")
    weight_decay: tuple[float, float] = Field(
        default=(0.04, 0.4),
        description="weight decay at the start and at the end, along a cosine; biases and scales have none",
    )
    momentum: Share = Field(default=0.996, description="momentum m of the teacher at the start; it rises to 1")
    # federation
    teacher_sync: Literal["average", "server_ema", "reset", "local"] = Field(
        default="average",
        description="the teacher is averaged as the student is; moved by the server alone, once a round; copied from "
        "the student by every client in every round; or kept by every client for itself",
    )
    reestimate: str | None = Field(
        default=None,
        description="name of a sample set of the server, on which it estimates the averaged teacher's running "
        "statistics of BatchNorm anew after each round; default: they are averaged over the clients",
    )

    @property
    def lambda_con(self) -> float:
        """Weight of L_con."""
        return {"infonce": 1.0, "npair": 0.01}[self.contrast] if self.contrast_weight is None else self.contrast_weight


def ema(s: DCGLRSettings) -> EmaTeacher:
    """The teacher as a moving average of the student, with the center of its logits beside it (§3.4)."""
    return EmaTeacher(s.teacher_sync, lambda at, total: cosine(at, total, s.momentum, 1.0), beside=("center",))


def check(s: DCGLRSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used."""
    if s.width % s.heads and s.backbone == "vit":
        raise ConfigError("method.heads", s.heads, f"a divisor of method.width = {s.width}")
    if not s.distillation_weight and not s.lambda_con:
        raise ConfigError("method.contrast_weight", 0, "a loss: method.distillation_weight is 0 as well")
    batch = config.training.batch_size
    fewest = config.federation.sampler.settings.get("fraction", 1.0)
    warnings = {
        f"training.batch_size = {batch}: negatives and the statistics of BatchNorm come from a batch; "
        f"{_SMALLEST_BATCH} or more are better": batch < _SMALLEST_BATCH,
        f"training.optimizer = {config.training.optimizer!r}: the closest code uses adamw": (
            config.training.optimizer != "adamw"
        ),
        "training.clip_norm is not set: the closest code clips each tensor to 3.0": config.training.clip_norm is None,
        "method.teacher_sync = local: clients that take part rarely have old teachers": (
            s.teacher_sync == "local" and fewest < 1
        ),
    }
    return [*(text for text, holds in warnings.items() if holds), *ema(s).warnings(config)]


def check_shapes(s: DCGLRSettings, columns: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse samples that are no shapes, and shapes with too few points for a view.

    Args:
        s: settings.
        columns: dtype and shape of each column of the samples.

    Raises:
        DataError: there is no column of points.
        ConfigError: a view or a graph of neighbors needs more points than the shapes have.
    """
    if "points" not in columns:
        fix = "use the source shapes, or the source points for your own"
        raise DataError("data.source", list(columns), "point clouds in a column 'points'", fix)
    points = columns["points"][1][0]
    smallest = min([points, *s.resolutions, math.ceil(points * s.local_size) if s.local_views else points])
    needed = {"pointnet": 1, "dgcnn": s.neighbors, "vit": 32}[s.backbone]
    if s.resolutions and points < max(s.resolutions):
        fix = "remove it, or sample the shapes more densely (data.source.points)"
        raise ConfigError("method.resolutions", max(s.resolutions), f"at most {points}, the points of a shape", fix)
    if smallest < needed:
        fix = "sample the shapes more densely (data.source.points), or choose larger views"
        expected = f"views of at least {needed} points, which this backbone needs; the smallest has {smallest}"
        raise ConfigError("method.backbone", s.backbone, expected, fix)
