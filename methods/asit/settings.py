"""Settings of ASiT."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedlab.config import Positive, Section, TrainingConfig, parse
from fedlab.errors import ConfigError
from fedlab.models.filterbank import FilterBank

Share = Annotated[float, Field(ge=0, le=1)]


class ASiTSettings(Section):
    """Settings of ASiT; defaults are the paper's for AudioSet, ViT-B."""

    # input (§3.1)
    rate: int = Field(
        default=32_000, ge=1000, description="sampling rate of the data in Hz; the method does not resample"
    )
    view_seconds: float = Field(
        default=6.0, gt=0.05, description="length of a view in seconds; shorter clips are padded"
    )
    bins: Positive = Field(default=128, description="number of mel bins, a multiple of patch")
    statistics: Literal["global", "local", "fixed"] = Field(
        default="global",
        description="mean and std of the filter bank: of all clients (each sends three sums once), "
        "of each client for itself, or `mean` and `std`",
    )
    mean: float = Field(
        default=-4.2677393, description="mean of the filter bank if statistics is fixed; default: AudioSet's"
    )
    std: float = Field(
        default=4.5689974,
        gt=0,
        description="standard deviation of the filter bank if statistics is fixed; default: AudioSet's",
    )
    # corruption (§3.2)
    corrupt: bool = Field(default=True, description="false: the student sees clean views, an ablation")
    drop: Share = Field(
        default=0.7,
        description="largest share of a view that is covered by zeroed blocks; drawn from U(min(0.5, drop), drop)",
    )
    replace: Share = Field(default=0.3, description="the same share for blocks that come from another clip")
    block: float = Field(
        default=0.3, gt=0, le=1, description="largest size of a block, as a share of height and of width"
    )
    align: Positive = Field(default=1, description="blocks start and end at multiples of this number")
    # networks (§3.3)
    patch: Positive = 16
    width: Positive = 768
    depth: Positive = 12
    heads: Positive = Field(default=12, description="number of attention heads, a divisor of width")
    drop_path: float = Field(default=0.1, ge=0, lt=1, description="stochastic depth in the last block of the student")
    hidden: Positive = Field(default=2048, description="width of the hidden layers of the projection head")
    bottleneck: Positive = Field(
        default=256, description="width of the features that are compared with the prototypes by cosine"
    )
    reconstruction_width: Positive = Field(
        default=128, description="number of channels before patches are turned into pixels"
    )
    class_prototypes: int = Field(default=8192, ge=2, description="number of prototypes of the class token, K_c")
    patch_prototypes: int = Field(default=1024, ge=2, description="number of prototypes of the patches, K_p")
    # losses (§3.4)
    class_weight: float = Field(default=1.0, ge=0, description="weight of L_cls")
    patch_weight: float = Field(default=1.0, ge=0, description="weight of L_dat")
    reconstruction_weight: float = Field(default=2.0, ge=0, description="weight of L_rec")
    student_temperature: float = Field(default=0.1, gt=0, description="temperature of the student, τ_s")
    teacher_temperature: tuple[float, float] = Field(
        default=(0.04, 0.07), description="temperature τ_t of the teacher at the start and after temperature_epochs"
    )
    center_momentum: Share = 0.9
    # schedules (§3.5); training.lr is the peak
    epochs: Positive = Field(
        default=100,
        description="number of epochs into which the schedules divide pre-training, independent of the rounds",
    )
    warmup_epochs: int = Field(default=10, ge=0, description="epochs in which the learning rate rises linearly")
    temperature_epochs: Positive = Field(default=30, description="epochs in which τ_t rises")
    freeze_prototypes_epochs: int = Field(
        default=0, ge=0, description="epochs in which the prototypes are not trained; 0 in the authors' code"
    )
    final_lr: float = Field(default=1e-6, ge=0, description="learning rate at the end of its cosine schedule")
    weight_decay: tuple[float, float] = Field(
        default=(0.04, 0.4),
        description="weight decay at the start and at the end, along a cosine; biases and vectors have none",
    )
    momentum: Share = Field(default=0.996, description="momentum m of the teacher at the start; it rises to 1")
    # federation (§6)
    teacher_sync: Literal["average", "server_ema", "reset", "local"] = Field(
        default="average",
        description="the teacher is averaged as the student is; moved by the server alone, once a round; copied from "
        "the student by every client in every round; or kept by every client for itself",
    )
    # fine-tuning (§3.6)
    finetune_rounds: int = Field(
        default=0, ge=0, description="number of last rounds, in which a classifier is trained with labels"
    )
    finetune_from: Literal["teacher", "student"] = Field(
        default="teacher", description="network whose backbone is fine-tuned"
    )
    finetune_seconds: float | None = Field(
        default=None, gt=0.05, description="length of a clip in fine-tuning, in seconds; default: view_seconds"
    )
    finetune_pool: Literal["class", "mean"] = Field(
        default="class",
        description="features of the classifier: class: the class token; mean: the mean over all tokens",
    )
    finetune_projector: int = Field(
        default=0, ge=0, description="width of an additional layer before the classifier; 0: no such layer"
    )
    finetune_loss: Literal["auto", "ce", "bce"] = Field(
        default="auto",
        description="loss of fine-tuning; auto: ce if every clip has one label, bce if clips may have several",
    )
    finetune_mixup: Share = Field(
        default=0.0, description="share of the clips that are mixed with another clip, with λ ~ Beta(10, 10)"
    )
    finetune_balanced: bool = Field(
        default=False, description="draw clips with replacement, and clips of rare classes more often"
    )
    finetune_masks: tuple[int, int] = Field(
        default=(0, 0), description="largest numbers of bins and of frames that SpecAugment masks"
    )
    finetune_decay: float = Field(
        default=1.0, gt=0, le=1, description="factor by which the learning rate is multiplied at each decay"
    )
    finetune_decay_from: Positive = Field(default=5, description="number of fine-tuning rounds before the first decay")
    finetune_decay_every: Positive = Field(
        default=1, description="number of fine-tuning rounds from one decay to the next"
    )
    finetune_average: int = Field(
        default=0,
        ge=0,
        description="number of last rounds whose weights are averaged into the final weights; 0: no averaging",
    )
    finetune_training: dict[str, Any] = Field(
        default={"lr": 1e-4, "weight_decay": 0.0},
        description="keys of the section training that are changed in the fine-tuning rounds",
    )
    # evaluation (§7)
    windows: Positive = Field(
        default=1, description="number of evenly spaced views of a clip, over which features are averaged"
    )
    probe_strength: float = Field(
        default=0.1, gt=0, description="inverse regularization strength C of the linear probe"
    )

    @property
    def window(self) -> int:
        """Samples of a view."""
        return round(self.rate * self.view_seconds)

    @property
    def finetune_window(self) -> int:
        """Samples of a clip in fine-tuning."""
        return round(self.rate * (self.finetune_seconds or self.view_seconds))


def check(settings: ASiTSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used."""
    s, rounds = settings, config.federation.rounds
    _check_shapes(s)
    if s.finetune_rounds > rounds:
        raise ConfigError("method.finetune_rounds", s.finetune_rounds, f"at most federation.rounds = {rounds}")
    if s.finetune_average > s.finetune_rounds:
        raise ConfigError("method.finetune_average", s.finetune_average, "at most method.finetune_rounds")
    rate = config.data.source.settings.get("rate", _RATES.get(config.data.source.name))
    if rate is not None and rate != s.rate:
        raise ConfigError("method.rate", s.rate, f"the data's rate, data.source.rate = {rate}", "set them alike")
    parse(TrainingConfig, {**config.training.model_dump(), **s.finetune_training}, "method.finetune_training")
    batch, stateful = config.training.batch_size, s.teacher_sync == "local"
    pretrains = s.finetune_rounds < rounds
    warnings = {
        f"training.batch_size = {batch}: blocks come from other clips of the batch, and centers are batch means; "
        "16 or more are better": pretrains and batch < 16,
        f"training.optimizer = {config.training.optimizer!r}: the paper's is adamw": (
            pretrains and config.training.optimizer != "adamw"
        ),
        "training.clip_norm is not set: the paper clips each tensor to 3.0": (
            pretrains and config.training.clip_norm is None
        ),
        "method.teacher_sync = local: clients that take part rarely have old teachers": stateful
        and config.federation.sampler.settings.get("fraction", 1.0) < 1,
    }
    return [text for text, holds in warnings.items() if holds]


_RATES = {"sounds": 8000}


def _check_shapes(s: ASiTSettings) -> None:
    if s.width % s.heads:
        raise ConfigError("method.heads", s.heads, f"a divisor of method.width = {s.width}")
    if s.bins % s.patch:
        raise ConfigError("method.bins", s.bins, f"a multiple of method.patch = {s.patch}")
    for key, seconds in (("view_seconds", s.view_seconds), ("finetune_seconds", s.finetune_seconds)):
        if seconds is not None and FilterBank(s.rate, s.bins).frames(round(s.rate * seconds)) < s.patch:
            raise ConfigError(
                f"method.{key}", seconds, f"at least {s.patch} frames, a patch", "frames come every 10 ms"
            )
