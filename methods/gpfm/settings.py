"""Settings of GPFM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedlab.blocks.teacher import EmaTeacher
from fedlab.config import Positive, Section
from fedlab.distill.schedules import cosine
from fedlab.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
EXPERTS = "experts"
"""Role of the distillation heads, one for each expert."""


class ExpertSettings(Section):
    """A frozen expert, which only some clients hold (§3.1)."""

    kind: Literal["pretrained", "generated"] = Field(
        default="pretrained",
        description="pretrained: a transformer of the library transformers, from data.assets; generated: a small ViT "
        "that is trained on generated tiles, for trying the method",
    )
    dim: Positive = Field(description="width of the expert's class and patch tokens")
    cls_weight: float = Field(default=1.0, ge=0, description="weight a of the loss on class tokens; 0: not used at all")
    patch_weight: float = Field(default=0.25, ge=0, description="weight b of the loss on patch tokens")
    normalized: bool = Field(default=False, description="whether its tokens are L2-normalized, as those of CONCH")
    knows: Literal["nuclei", "stroma"] = Field(
        default="nuclei", description="what a generated expert is trained to tell apart"
    )
    steps: Positive = Field(default=200, description="training steps of a generated expert")


class ViewSettings(Section):
    """How a tile becomes crops (§3.2). Tiles are in [0, 1]; crops are normalized."""

    size: Positive = Field(default=224, description="height and width of the two global crops, a multiple of patch")
    scale: tuple[Share, Share] = Field(default=(0.32, 1.0), description="share of the tile's area in a global crop")
    local: int = Field(default=8, ge=0, description="number of local crops")
    local_size: Positive = Field(default=98, description="height and width of a local crop, a multiple of patch")
    local_scale: tuple[Share, Share] = Field(default=(0.05, 0.32), description="share of the area in a local crop")
    flip: bool = Field(default=True, description="mirror crops left and right with probability 1/2")
    color: Share = Field(default=0.8, description="probability that brightness, contrast, saturation and hue change")
    gray: Share = Field(default=0.2, description="probability that a crop becomes gray")
    blur: tuple[Share, Share, Share] = Field(
        default=(0.0, 0.9, 0.5),
        description="probability of a blur in the first and the second global crop and in local ones; the defaults are "
        "those that the authors' code really has (§4)",
    )
    mean: tuple[float, ...] = Field(
        default=(0.485, 0.456, 0.406), description="subtracted from each channel; default: of ImageNet"
    )
    solarize: Share = Field(default=0.2, description="probability that the second global crop is solarized")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.229, 0.224, 0.225), description="by which each channel is then divided; default: of ImageNet"
    )


class GPFMSettings(Section):
    """Settings of GPFM; the defaults are those of the authors' ViT-L run."""

    experts: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], ExpertSettings] = Field(
        default={}, description="name of each expert → what it is; data.holds says which client holds which"
    )
    views: ViewSettings = ViewSettings()
    masked: Share = Field(default=0.5, description="share of the global crops that get a mask")
    mask_share: tuple[Share, Share] = Field(default=(0.1, 0.5), description="share of the patches in a mask")
    # networks (§3.1)
    patch: Positive = 14
    width: Positive = 1024
    depth: Positive = 24
    heads: Positive = Field(default=16, description="number of attention heads, a divisor of width")
    drop_path: float = Field(default=0.4, ge=0, lt=1, description="stochastic depth, the same in all blocks")
    layer_scale: float | None = Field(default=1e-5, gt=0, description="initial factor of each residual; null: none")
    head_widths: tuple[Positive, ...] = Field(
        default=(2048, 2048, 256), min_length=1, description="widths of the prototype head's layers"
    )
    prototypes: int = Field(default=65536, ge=2, description="number of prototypes, K")
    expert_width: Positive = Field(default=256, description="bottleneck of a distillation head")
    init_std: float = Field(default=0.02, gt=0, description="standard deviation of initial weights of linear layers")
    # losses (§3.3)
    dino_weight: float = Field(default=1.0, ge=0, description="weight of L_dino")
    ibot_weight: float = Field(default=1.0, ge=0, description="weight of L_ibot")
    koleo_weight: float = Field(default=0.1, ge=0, description="weight of L_koleo")
    cls_loss: Literal["cosine", "kl"] = Field(default="cosine", description="what class tokens are compared by")
    student_temperature: float = Field(default=0.1, gt=0, description="temperature of the student, τ_s")
    teacher_temperature: Range = Field(
        default=(0.04, 0.07), description="temperature τ_t of the teacher at the start and after temperature_epochs"
    )
    center_momentum: Share = 0.9
    # schedules (§3.4), over the steps of all rounds; training.lr is the peak
    epochs: Positive = Field(default=400, description="number of epochs into which the schedules divide a run")
    warmup_epochs: int = Field(default=40, ge=0, description="epochs in which the learning rate rises linearly")
    temperature_epochs: Positive = Field(default=30, description="epochs in which τ_t rises")
    freeze_epochs: int = Field(default=1, ge=0, description="epochs in which the last layers of all heads stay")
    final_lr: float = Field(default=1e-6, ge=0, description="learning rate at the end of its cosine schedule")
    weight_decay: Range = Field(default=(0.04, 0.4), description="weight decay at the start and at the end")
    layer_decay: float = Field(default=0.9, gt=0, le=1, description="factor of the learning rate from block to block")
    patch_factor: float = Field(default=0.2, gt=0, le=1, description="further factor of the patch embedding's rate")
    clip_norm: float | None = Field(
        default=3.0, gt=0, description="largest norm of the gradients of the backbone, and of those of the head"
    )
    momentum: Share = Field(default=0.992, description="momentum m of the teacher at the start; it rises to 1")
    # federation (§6)
    teacher_sync: Literal["average", "server_ema", "reset", "local"] = Field(
        default="average", description="what becomes of the teacher between rounds; see the README"
    )
    # evaluation (§7)
    judged: str = Field(
        default="teacher",
        description="whose features the tasks measure: teacher, student, or an expert that the server holds",
    )
    tasks: tuple[str, ...] = Field(
        default=("label",), description="columns of labels that are predicted from features of the server's tiles"
    )
    few: Positive = Field(default=160, description="number of labeled tiles in the tasks with few labels")


def ema(settings: GPFMSettings) -> EmaTeacher:
    """The teacher, which follows backbone and prototype head; distillation heads have none (§3.3, step 6)."""
    s = settings
    return EmaTeacher(
        s.teacher_sync, lambda step, total: cosine(step, total, s.momentum, 1.0), beside=("centers",), evaluating=True
    )


def check(settings: GPFMSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used."""
    s = settings
    local = {"local_size": s.views.local_size} if s.views.local else {}
    for key, size in {"size": s.views.size, **local}.items():
        if size % s.patch:
            raise ConfigError(f"method.views.{key}", size, f"a multiple of method.patch = {s.patch}")
    if s.width % s.heads:
        raise ConfigError("method.heads", s.heads, f"a divisor of method.width = {s.width}")
    if reserved := {"teacher", "student"} & s.experts.keys():
        raise ConfigError("method.experts", reserved.pop(), "another name: this is one of GPFM's own networks")
    if s.judged not in ("teacher", "student", *s.experts):
        raise ConfigError("method.judged", s.judged, f"teacher, student or an expert: {', '.join(s.experts)}")
    if s.judged in s.experts and s.judged not in config.data.server_holds:
        fix = "add it to data.server_holds"
        raise ConfigError("method.judged", s.judged, "teacher, student or an expert that the server holds", fix)
    for name, expert in s.experts.items():
        if expert.patch_weight and not expert.cls_weight:
            expected = "0 as well where cls_weight is 0: an expert without it is not used at all"
            raise ConfigError(f"method.experts.{name}.patch_weight", expert.patch_weight, expected)
    means, deviations = config.data.mean, config.data.std
    warnings = ema(s).warnings(config)
    if means != (0.0,) or deviations != (1.0,):
        warnings.append("data.mean and data.std: tiles should reach the method in [0, 1] (mean [0.0], std [1.0])")
    if config.training.clip_norm is not None:
        warnings.append("training.clip_norm is not used: method.clip_norm clips backbone and head apart")
    return warnings


def used(settings: GPFMSettings) -> dict[str, ExpertSettings]:
    """The experts whose loss is not turned off."""
    return {name: expert for name, expert in settings.experts.items() if expert.cls_weight}
