"""Settings of MMC."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class ViewSettings(Section):
    """How a picture becomes views (§3.1). Pictures are in [0, 1]; the views are normalized."""

    size: Positive = Field(default=224, description="height and width of a global view, a multiple of patch")
    crop: Literal["resized", "window"] = Field(
        default="resized",
        description="resized: a random part of the picture, resized with bicubic interpolation; window: a random "
        "window of `size` pixels at a multiple of patch, without resizing",
    )
    scale: tuple[Share, Share] = Field(default=(0.2, 1.0), description="share of the picture's area in a resized view")
    flip: bool = Field(default=True, description="mirror views left and right with probability 1/2")
    color: bool = Field(
        default=True,
        description="change brightness, contrast, saturation and hue, blur and solarize as the authors' earlier work",
    )
    gain: Range = Field(
        default=(1.0, 1.0), description="each normalized view is multiplied by a number from this range"
    )
    noise: float = Field(default=0.0, ge=0, description="standard deviation of noise that is added to normalized views")
    local: int = Field(default=0, ge=0, description="number of small views, which only the student's class token sees")
    local_size: Positive = Field(default=96, description="height and width of a small view, a multiple of patch")
    local_scale: tuple[Share, Share] = Field(default=(0.05, 0.25), description="share of the area in a small view")
    mean: tuple[float, ...] = Field(
        default=(0.485, 0.456, 0.406), description="subtracted from each channel; default: of ImageNet"
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.229, 0.224, 0.225), description="by which each channel is then divided; default: of ImageNet"
    )


class MMCSettings(Section):
    """Settings of MMC. The paper publishes no values; defaults are those of the group's SiT and MC-SSL (README)."""

    views: ViewSettings = ViewSettings()
    # corruption (§3.1)
    corrupt: bool = Field(default=True, description="false: the student sees clean views, an ablation")
    drop: Share = Field(
        default=0.5, description="largest share of a view that zeroed blocks cover, drawn from U(min(0.5, drop), drop)"
    )
    replace: Share = Field(default=0.3, description="the same share for blocks that come from another picture")
    block: float = Field(default=0.3, gt=0, le=1, description="largest side of a block, as a share of the view's side")
    align: Positive = Field(default=1, description="blocks start and end at multiples of this number of pixels")
    # networks (§3.2)
    patch: Positive = 16
    width: Positive = 384
    depth: Positive = 12
    heads: Positive = Field(default=6, description="number of attention heads, a divisor of width")
    drop_path: float = Field(default=0.1, ge=0, lt=1, description="stochastic depth in the student's last block")
    patch_widths: tuple[Positive, ...] = Field(
        default=(2048, 2048, 256), min_length=1, description="widths of the patch head's layers, the last of which is "
        "compared with the prototypes by cosine",
    )  # fmt: skip
    prototypes: int = Field(default=8192, ge=2, description="number of prototypes, K")
    contrast_widths: tuple[Positive, ...] = Field(
        default=(4096, 4096, 256), min_length=1, description="widths of the contrast head's layers"
    )
    predictor: tuple[Positive, ...] = Field(
        default=(), description="widths of a predictor on the student's side of the contrast, such as [1024, 256], "
        "whose last is that of the contrast head; empty: none",
    )  # fmt: skip
    decoder_widths: tuple[Positive, ...] | None = Field(
        default=None, min_length=1, description="widths of the reconstruction head's layers; default: three of `width`"
    )
    init_std: float = Field(
        default=0.02,
        gt=0,
        description="standard deviation of the initial weights of linear layers. 0.02 suits the width of ViT-S and "
        "more; narrow networks need about 0.02 · √(768 / width), or they hardly learn from context",
    )
    # losses (§3.3)
    reconstruction_weight: float = Field(default=1.0, ge=0, description="weight of L_mim, w_m")
    distillation_weight: float = Field(default=1.0, ge=0, description="weight of L_dis, w_d")
    contrast_weight: float = Field(default=1.0, ge=0, description="weight of L_con, w_c")
    reconstruction: Literal["l1", "squared"] = Field(default="l1", description="error of a corrupted pixel in L_mim")
    global_to_local: Literal["patch", "shared", "cls_to_patch"] = Field(
        default="patch",
        description="what teaches a patch. patch: the teacher's same patch; shared: the same, and the class token is "
        "distilled across views through the same head; cls_to_patch: the class token of the view, which makes all "
        "patches of a view alike",
    )
    contrast_temperature: float = Field(default=0.2, gt=0, description="temperature of L_con, τ")
    student_temperature: float = Field(default=0.1, gt=0, description="temperature of the student in L_dis, τ_s")
    teacher_temperature: Range = Field(
        default=(0.04, 0.07), description="temperature τ_t of the teacher at the start and after temperature_epochs"
    )
    center_momentum: Share = 0.9
    # schedules (§3.4); training.lr is the peak
    epochs: Positive = Field(
        default=800, description="number of epochs into which the schedules divide a run, independent of the rounds"
    )
    warmup_epochs: int = Field(default=10, ge=0, description="epochs in which the learning rate rises linearly")
    temperature_epochs: Positive = Field(default=30, description="epochs in which τ_t rises")
    final_lr: float = Field(default=1e-6, ge=0, description="learning rate at the end of its cosine schedule")
    weight_decay: Range = Field(
        default=(0.04, 0.1), description="weight decay at the start and at the end, along a cosine; not on vectors"
    )
    momentum: Share = Field(default=0.996, description="momentum m of the teacher at the start; it rises to 1")
    # federation (§6)
    teacher_sync: Literal["average", "server_ema", "reset", "local"] = Field(
        default="average",
        description="what becomes of the teacher between rounds. average: it is averaged like the student; server_ema: "
        "only the server moves it, once a round; reset: each client starts from its student; local: each client keeps "
        "its own",
    )
    # evaluation (§3.5)
    level: Literal["patch", "pixel"] = Field(
        default="patch", description="resolution at which segmentations are scored; pixel: after bilinear enlargement"
    )
    points: int = Field(default=5, ge=0, description="number of random prompts of each object, beside the innermost")


def check(settings: MMCSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used."""
    s = settings
    if s.width % s.heads:
        raise ConfigError("method.heads", s.heads, f"a divisor of method.width = {s.width}")
    for key, size in (("size", s.views.size), ("local_size", s.views.local_size if s.views.local else s.patch)):
        if size % s.patch:
            raise ConfigError(f"method.views.{key}", size, f"a multiple of method.patch = {s.patch}")
    if s.predictor and s.predictor[-1] != s.contrast_widths[-1]:
        expected = f"a last width of {s.contrast_widths[-1]}, that of method.contrast_widths"
        raise ConfigError("method.predictor", s.predictor, expected)
    if not (s.reconstruction_weight or s.distillation_weight or s.contrast_weight):
        raise ConfigError("method.reconstruction_weight", 0, "at least one weight of a loss above 0")
    for key, value in (("mean", 0.0), ("std", 1.0)):
        if config.data is not None and set(_numbers(getattr(config.data, key))) != {value}:
            fix = f"set data.{key}: [{value:g}]; MMC normalizes its views itself, by method.views.{key}"
            raise ConfigError(f"data.{key}", getattr(config.data, key), f"{value:g}: pictures in [0, 1]", fix)
    training = config.training
    warnings = {
        f"training.batch_size = {training.batch_size}: negatives and blocks come from the other pictures of the batch, "
        "and heads normalize over it; 16 or more are better": training.batch_size < 16,
        f"training.optimizer = {training.optimizer!r}: the group's code uses adamw": training.optimizer != "adamw",
        "training.clip_norm is not set: the group's code clips each tensor to 3.0": training.clip_norm is None,
        "method.global_to_local = cls_to_patch makes all patches of a view alike, against the aim of telling objects "
        "apart": s.global_to_local == "cls_to_patch" and bool(s.distillation_weight),
        "method.corrupt = false: nothing is masked, so L_mim is 0": not s.corrupt and bool(s.reconstruction_weight),
    }
    return [text for text, holds in warnings.items() if holds]


def _numbers(given: Any) -> tuple[float, ...]:
    return tuple(value for row in given.values() for value in row) if isinstance(given, dict) else tuple(given)
