"""Settings of S2-UniSeg."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field

from fedlab.blocks.teacher import EmaTeacher
from fedlab.config import Positive, Section
from fedlab.config.sections import HubPath
from fedlab.distill.schedules import cosine
from fedlab.distill.uniap import Pooling
from fedlab.errors import ConfigError
from fedlab.models.mask2former import DIVISOR, STRIDES

Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
KINDS = ("instance", "semantic")
"""The kinds of queries and of regions, [INS] and [SEM], in the order of their numbers."""


class BackboneSettings(Section):
    """The network whose features the adapter refines (§3.2); defaults are those of DINO ViT-B/8 at half the size."""

    kind: Literal["vit", "cosines"] = Field(
        default="vit",
        description="vit: a vision transformer; cosines: random cosine features of the mean color of each patch, which "
        "are never trained, for small experiments",
    )
    pretrained: HubPath | None = Field(
        default=None, description="checkpoint of a ViT as transformers saves it, by its name on the hub or its folder"
    )
    trained: bool = Field(
        default=True, description="false: the backbone is never trained and is sent to each client once"
    )
    patch: Positive = Field(default=8, description="height and width of a patch")
    width: Positive = Field(default=768, description="length d of its features")
    depth: Positive = 12
    heads: Positive = Field(default=12, description="number of attention heads, a divisor of width")
    shrink: Positive = Field(default=2, description="factor by which images are made smaller for the transformer")
    size: Positive = Field(default=224, description="height and width for which learned positions are made")
    bandwidth: float = Field(
        default=0.2, gt=0, description="of cosines: distance of two colors at which the similarity is exp(−1/2)"
    )


class DecoderSettings(Section):
    """The student's Mask2Former (§3.2)."""

    instances: Positive = Field(default=150, description="number of [INS] queries")
    semantics: Positive = Field(default=50, description="number of [SEM] queries")
    width: Positive = Field(default=256, description=f"width of queries and decoders, a multiple of {DIVISOR}")
    heads: Positive = Field(default=8, description="number of attention heads, a divisor of width")
    layers: Positive = Field(default=9, description="number of layers of masked attention")
    pixel_layers: Positive = Field(default=6, description="number of layers of deformable attention")
    feedforward: Positive = Field(default=2048, description="hidden width of a layer of masked attention")
    pixel_feedforward: Positive = Field(default=1024, description="hidden width of a layer of deformable attention")


class PoolingSettings(Section):
    """UniAP (§3.1). The thresholds belong to the backbone: others may need higher ones."""

    thresholds: tuple[float, ...] = Field(
        default=(0.8, 0.7, 0.6, 0.5, 0.4), min_length=1, description="similarity τ from which regions merge, by layer"
    )
    feature_weight: Share = Field(
        default=0.6, description="weight ω_f of the similarity of features; that of the affinities is 1 − ω_f"
    )
    temperature: float = Field(default=0.07, gt=0, description="temperature σ of the softmax of a region's feature")
    min_size: Positive = Field(default=4, description="smallest number of tokens of a region that is used")
    mask_mean: bool = Field(default=False, description="divide a region's affinities by its size before that softmax")
    repeat: bool = Field(default=True, description="a layer merges until nothing merges any more, instead of once")
    side: Positive = Field(
        default=32,
        description="largest number of rows and of columns of tokens that are pooled; larger maps are resized. Memory "
        "grows with the fourth power",
    )

    @property
    def pooling(self) -> Pooling:
        """The same as an argument of `fedlab.distill.uniap.uniap`."""
        return Pooling(**self.model_dump(exclude={"side"}))


class ViewSettings(Section):
    """Crops that the student sees (§3.3). Images are in [0, 1]; what the networks see is normalized."""

    crops: Positive = Field(default=2, description="number of crops of an image in a step, δ")
    scale: tuple[Share, Share] = Field(default=(0.05, 0.4), description="share of the image's area in a crop")
    size: Positive = Field(
        default=224, description=f"height and width to which crops are resized, a multiple of {STRIDES[-1]}"
    )
    flip: bool = Field(default=False, description="mirror crops left and right with probability 1/2")
    color: bool = Field(default=True, description="change the colors of crops and blur them, as in DINO")
    mean: tuple[float, ...] = Field(
        default=(0.485, 0.456, 0.406),
        description="subtracted from each channel of crops and of whole images; default: the means of ImageNet",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.229, 0.224, 0.225), description="by which each channel is divided after that; default: of ImageNet"
    )


class S2UniSegSettings(Section):
    """Settings of S2-UniSeg; defaults are the paper's, or DINO's where the paper says nothing (README)."""

    backbone: BackboneSettings = BackboneSettings()
    decoder: DecoderSettings = DecoderSettings()
    pooling: PoolingSettings = PoolingSettings()
    views: ViewSettings = ViewSettings()
    adapter_width: Positive = Field(default=64, description="channels of the adapter's convolutions")
    head_widths: tuple[Positive, ...] = Field(
        default=(2048, 2048, 256), min_length=1, description="widths of the projection head's layers, the last of "
        "which is compared with the prototypes by cosine",
    )  # fmt: skip
    prototypes: int = Field(default=512, ge=2, description="number of prototypes, K")
    init_std: float = Field(
        default=0.02, gt=0, description="standard deviation of initial weights of the head; narrow heads need more"
    )
    # losses (§3.3)
    query_weight: float = Field(default=1.0, ge=0, description="weight of L_Q (QuerySD); 0: an ablation")
    mask_weight: float = Field(default=5.0, ge=0, description="weight of the cross-entropy of matched masks")
    dice_weight: float = Field(default=5.0, ge=0, description="weight of 1 − Dice of matched masks")
    semantic_pooling: bool = Field(
        default=True, description="false: [SEM] queries are taught instances too, an ablation"
    )
    student_temperature: float = Field(default=0.1, gt=0, description="temperature of the student, τ_s")
    teacher_temperature: Range = Field(
        default=(0.04, 0.07), description="temperature τ_t of the teacher at the start and after its warm-up"
    )
    center_momentum: Share = 0.9
    # schedules, over the steps of all rounds; training.lr is the peak
    warmup: Share = Field(default=0.0625, description="share of the steps in which the learning rate rises linearly")
    temperature_warmup: Share = Field(default=0.3, description="share of the steps in which τ_t rises")
    freeze_prototypes: Share = Field(
        default=0.01, description="share of the steps in which prototypes are not trained, at the start"
    )
    final_lr: float = Field(default=1e-6, ge=0, description="learning rate at the end of its cosine schedule")
    weight_decay: Range = Field(
        default=(0.04, 0.4), description="weight decay at the start and at the end, along a cosine; not on vectors"
    )
    momentum: Share = Field(default=0.996, description="momentum m of the teacher at the start; it rises to 1")
    # federation (§6)
    teacher_sync: Literal["average", "server_ema", "reset", "local"] = Field(
        default="server_ema",
        description="what becomes of the teacher between rounds. server_ema: only the server moves it, once a round; "
        "average: it is averaged like the student; reset: each client starts from its student; local: each client "
        "keeps its own",
    )
    timed: int = Field(default=8, ge=0, description="number of test images for which the time of UniAP is measured")


def ema(settings: S2UniSegSettings) -> EmaTeacher:
    """The teacher, a moving average of the student's encoder and head, and the centers of its logits."""
    s = settings
    return EmaTeacher(
        s.teacher_sync, lambda step, total: cosine(step, total, s.momentum, 1.0), beside=("centers",), evaluating=True
    )


def check(settings: S2UniSegSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used."""
    s, b, d = settings, settings.backbone, settings.decoder
    if b.kind == "vit" and b.width % b.heads:
        raise ConfigError("method.backbone.heads", b.heads, f"a divisor of method.backbone.width = {b.width}")
    if b.kind == "cosines" and (b.trained or b.pretrained):
        key, value = ("trained", True) if b.trained else ("pretrained", b.pretrained)
        expected = "false" if b.trained else "no checkpoint"
        fix = "cosines have no weights to train or to load"
        raise ConfigError(f"method.backbone.{key}", value, f"{expected} with method.backbone.kind = cosines", fix)
    if d.width % DIVISOR:
        raise ConfigError("method.decoder.width", d.width, f"a multiple of {DIVISOR}")
    if d.width % d.heads:
        raise ConfigError("method.decoder.heads", d.heads, f"a divisor of method.decoder.width = {d.width}")
    if any(first <= second for first, second in itertools.pairwise(s.pooling.thresholds)):
        raise ConfigError("method.pooling.thresholds", list(s.pooling.thresholds), "thresholds that fall")
    if s.views.size % STRIDES[-1]:
        raise ConfigError("method.views.size", s.views.size, f"a multiple of {STRIDES[-1]}")
    if not 0 < s.views.scale[0] <= s.views.scale[1]:
        raise ConfigError("method.views.scale", list(s.views.scale), "two shares above 0, the smaller one first")
    if not (s.query_weight or s.mask_weight or s.dice_weight):
        raise ConfigError("method.query_weight", 0, "at least one weight of a loss above 0")
    _check_range(config)
    training = config.training
    doubtful = [
        ("training.optimizer", training.optimizer, "the paper uses adamw", training.optimizer != "adamw"),
        (
            "method.backbone.pretrained",
            b.pretrained,
            "regions of a ViT with random weights mean nothing",
            b.kind == "vit" and b.pretrained is None and not {"backbone", "student"} & config.init.keys(),
        ),
        (
            "method.mask_weight",
            0,
            "without a loss of masks, queries find no regions",
            not (s.mask_weight or s.dice_weight),
        ),
    ]
    return [f"{key} = {value}: {why}" for key, value, why, holds in doubtful if holds] + ema(s).warnings(config)


def _check_range(config: Any) -> None:
    if config.data is None:
        return
    for key, wanted in {"mean": 0.0, "std": 1.0}.items():
        given = getattr(config.data, key)
        rows = given.values() if isinstance(given, dict) else [given]
        if any(value != wanted for row in rows for value in row):
            fix = f"set data.{key}: [{wanted:g}]; method.views.{key} normalizes what the networks see"
            raise ConfigError(f"data.{key}", given, f"{wanted:g}, so that images arrive in [0, 1]", fix)
