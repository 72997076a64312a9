"""Settings of PAT and checks of a configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fedlab.config import Fraction, Positive, Section
from fedlab.config.sections import HubPath
from fedlab.errors import ConfigError
from fedlab.method import Task


class PATSettings(Section):
    """Settings; defaults are the paper's (as released) with PSD on."""

    pretrained: HubPath | None = Field(
        default=None, description="ViTModel of transformers from which the backbone starts: a hub name or a folder"
    )
    patch: Positive = Field(default=16, description="side of a patch in pixels")
    width: Positive = Field(default=768, description="width of a token, D")
    depth: Positive = Field(default=12, description="number of layers")
    heads: Positive = Field(default=12, description="number of attention heads")
    mlp_ratio: Positive = Field(default=4, description="hidden width of the perceptron, as a multiple of D")
    drop_path: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="stochastic depth of the last layer; it rises linearly from 0 over the layers",
    )
    freeze_patches: bool = Field(default=True, description="do not train the patch projection, and send it only once")
    parts: bool = Field(default=True, description="false: the plain ViT, without part tokens, CSL and PSD")
    csl: bool = Field(default=True, description="cross-ID similarity learning")
    csl_weight: float = Field(default=1.0, ge=0, description="weight of L_CSL")
    neighbors: Positive = Field(
        default=10, description="number of neighbors K; it should be smaller than the number of images per identity"
    )
    scale: float = Field(default=0.02, gt=0, description="scale s, for features of width 768")
    rescale: bool = Field(
        default=False, description="use s·768/D instead of s, so that its effect does not depend on the width"
    )
    bank_momentum: Fraction = Field(default=0.1, description="weight m of a new feature in the memory")
    bank: Literal["refill", "keep"] = Field(
        default="refill",
        description="how the memory is filled: refill: by a pass without gradient at the start of each round; "
        "keep: once",
    )
    psd: bool = Field(default=True, description="part-guided self-distillation")
    psd_share: float = Field(default=0.5, ge=0, le=1, description="share λ of the neighbors in the soft target")
    psd_weight: float = Field(default=0.5, ge=0, le=1, description="weight α of the loss on the soft target")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing ε")
    triplet: bool = Field(default=True, description="batch-hard triplet loss")
    instances: Positive = Field(
        default=4,
        description="number of images per identity in a batch, which has P = batch_size / instances identities",
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    pad: int = Field(
        default=10,
        ge=0,
        description="width in pixels of a black border that is added before a random crop to the old size",
    )
    gray_patch: float = Field(default=0.0, ge=0, le=1, description="probability of a gray rectangle")
    erase: float = Field(default=0.0, ge=0, le=1, description="probability of an erased rectangle")
    black: float = Field(default=-1.0, description="value of black after normalization: (0 − mean) / std")
    bias_lr: float = Field(
        default=2.0, gt=0, description="learning rate of biases relative to that of the other parameters"
    )
    warmup_rounds: int = Field(
        default=5, ge=0, description="number of rounds in which the learning rate rises linearly"
    )
    warmup_start: float = Field(
        default=0.01, ge=0, le=1, description="factor of the learning rate at the start of the warm-up"
    )
    lr_floor: float = Field(
        default=0.002, ge=0, le=1, description="factor of the learning rate at the end of the cosine"
    )
    cosine_rounds: Positive | None = Field(
        default=None, description="length of the cosine in rounds; default: the rounds of the run"
    )
    neck_statistics: Literal["average", "local"] = Field(
        default="average",
        description="running statistics of the BNNeck: average: averaged like weights; local: each client keeps "
        "its own",
    )

    @property
    def uses_bank(self) -> bool:
        """Whether there are neighbors to look for."""
        return self.parts and (self.csl or self.psd)

    @property
    def effective_scale(self) -> float:
        """s at this width."""
        return self.scale * 768 / self.width if self.rescale else self.scale


def check(s: PATSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used.

    Raises:
        ConfigError: batches that hold no whole group of images, or a kept memory of data that changes.
    """
    training = config.training
    if training.batch_size % s.instances:
        raise ConfigError(
            "training.batch_size", training.batch_size, f"a multiple of method.instances = {s.instances}", "P × K"
        )
    if s.bank == "keep" and config.data.drift:
        raise ConfigError("method.bank", "keep", "refill where the data drifts", "rows belong to images")
    black = [-m / d for m, d in zip(_flat(config.data.mean), _flat(config.data.std), strict=False)]
    warnings = {
        "training.schedule and training.warmup_steps have no effect: method.warmup_rounds, lr_floor and cosine_rounds "
        "are PAT's schedule": training.schedule != "constant" or bool(training.warmup_steps),
        f"method.black = {s.black:g}, but data.mean and data.std make black {black[0]:g}": any(
            abs(value - s.black) > 0.05 for value in black
        ),
        "one identity per batch: no triplet has a negative": s.triplet and training.batch_size == s.instances,
        "method.parts = false is the plain ViT: CSL and PSD need part tokens": not s.parts,
    }
    return [text for text, holds in warnings.items() if holds]


def check_images(s: PATSettings, task: Task) -> tuple[int, int, int]:
    """(C, H, W) of the images.

    Raises:
        ConfigError: no images of identities, or a size the patches or bands do not fit.
    """
    if len(task.input_shape) != 3 or "label" not in task.columns:
        raise ConfigError("data.source", sorted(task.columns), "images with identities (columns image and label)")
    channels, height, width = task.input_shape
    if height % s.patch or width % s.patch or height // s.patch < 4:
        raise ConfigError(
            "method.patch", s.patch, f"a divisor of {height} and {width} that leaves at least 4 rows", "change either"
        )
    if s.width % s.heads:
        raise ConfigError("method.heads", s.heads, f"a divisor of method.width = {s.width}")
    return channels, height, width


def _flat(statistics: Any) -> list[float]:
    rows = statistics.values() if isinstance(statistics, dict) else [statistics]
    return [value for row in rows for value in row]
