"""What can be set of ASiT."""

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
    rate: int = Field(default=32_000, ge=1000, description="samples a second of the data; nothing is resampled here")
    view_seconds: float = Field(default=6.0, gt=0.05, description="length of a view; shorter clips are padded")
    bins: Positive = Field(default=128, description="mel bins, a multiple of patch")
    statistics: Literal["global", "local", "fixed"] = Field(
        default="global",
        description="mean and std of the filter bank: of all clients (each sends three sums once), "
        "of each client for itself, or `mean` and `std`",
    )
    mean: float = Field(default=-4.2677393, description="where statistics is fixed; AudioSet's")
    std: float = Field(default=4.5689974, gt=0, description="likewise")
    # corruption (§3.2)
    corrupt: bool = Field(default=True, description="false shows the student clean views; an ablation")
    drop: Share = Field(default=0.7, description="share covered where blocks are zeroed: U(min(0.5, drop), drop)")
    replace: Share = Field(default=0.3, description="the same where blocks come from another clip")
    block: float = Field(default=0.3, gt=0, le=1, description="largest block, as a part of height and of width")
    align: Positive = Field(default=1, description="blocks start and end at multiples of it")
    # networks (§3.3)
    patch: Positive = 16
    width: Positive = 768
    depth: Positive = 12
    heads: Positive = Field(default=12, description="a divisor of width")
    drop_path: float = Field(default=0.1, ge=0, lt=1, description="stochastic depth of the student's last block")
    hidden: Positive = Field(default=2048, description="hidden width of the projection MLP")
    bottleneck: Positive = Field(default=256, description="width in which cosines are taken")
    reconstruction_width: Positive = Field(default=128, description="channels before patches become pixels")
    class_prototypes: int = Field(default=8192, ge=2, description="K_c")
    patch_prototypes: int = Field(default=1024, ge=2, description="K_p")
    # losses (§3.4)
    class_weight: float = Field(default=1.0, ge=0, description="of L_cls")
    patch_weight: float = Field(default=1.0, ge=0, description="of L_dat")
    reconstruction_weight: float = Field(default=2.0, ge=0, description="of L_rec")
    student_temperature: float = Field(default=0.1, gt=0, description="τ_s")
    teacher_temperature: tuple[float, float] = Field(default=(0.04, 0.07), description="τ_t at first and from then on")
    center_momentum: Share = 0.9
    # schedules (§3.5); training.lr is the peak
    epochs: Positive = Field(
        default=100, description="parts of pre-training that schedules count in, wherever rounds begin and end"
    )
    warmup_epochs: int = Field(default=10, ge=0, description="linear warm-up of the learning rate")
    temperature_epochs: Positive = Field(default=30, description="of the rise of τ_t")
    freeze_prototypes_epochs: int = Field(default=0, ge=0, description="prototypes rest so long; the release's is 0")
    final_lr: float = Field(default=1e-6, ge=0, description="where the cosine of the learning rate ends")
    weight_decay: tuple[float, float] = Field(default=(0.04, 0.4), description="cosine; not on biases and vectors")
    momentum: Share = Field(default=0.996, description="m of the teacher at first, 1 in the end")
    # federation (§6)
    teacher_sync: Literal["average", "server_ema", "reset", "local"] = Field(
        default="average",
        description="the teacher is averaged as the student is; moved by the server alone, once a round; copied from "
        "the student by every client in every round; or kept by every client for itself",
    )
    # fine-tuning (§3.6)
    finetune_rounds: int = Field(default=0, ge=0, description="last rounds, which train a classifier with labels")
    finetune_from: Literal["teacher", "student"] = Field(default="teacher", description="whose backbone")
    finetune_seconds: float | None = Field(default=None, gt=0.05, description="length of a clip; default: of a view")
    finetune_pool: Literal["class", "mean"] = Field(default="class", description="token, or mean over all tokens")
    finetune_projector: int = Field(default=0, ge=0, description="width of a layer before the classifier, 0 for none")
    finetune_loss: Literal["auto", "ce", "bce"] = Field(
        default="auto", description="auto: ce for one label a clip, bce for several"
    )
    finetune_mixup: Share = Field(default=0.0, description="share of clips mixed with another, λ ~ Beta(10, 10)")
    finetune_balanced: bool = Field(
        default=False, description="draw clips with replacement, those of rare classes more often"
    )
    finetune_masks: tuple[int, int] = Field(default=(0, 0), description="SpecAugment: bins and frames masked at most")
    finetune_decay: float = Field(default=1.0, gt=0, le=1, description="factor of the learning rate")
    finetune_decay_from: Positive = Field(default=5, description="fine-tuning rounds done before the first decay")
    finetune_decay_every: Positive = Field(default=1, description="fine-tuning rounds between two")
    finetune_average: int = Field(
        default=0, ge=0, description="the final weights are the mean of so many last rounds'; 0: of none"
    )
    finetune_training: dict[str, Any] = Field(
        default={"lr": 1e-4, "weight_decay": 0.0}, description="changes to the training section in those rounds"
    )
    # evaluation (§7)
    windows: Positive = Field(default=1, description="evenly spaced views of a clip whose features are averaged")
    probe_strength: float = Field(default=0.1, gt=0, description="C of the linear probe")

    @property
    def window(self) -> int:
        """Samples of a view."""
        return round(self.rate * self.view_seconds)

    @property
    def finetune_window(self) -> int:
        """Samples of a clip in fine-tuning."""
        return round(self.rate * (self.finetune_seconds or self.view_seconds))


def check(settings: ASiTSettings, config: Any) -> list[str]:
    """Refuse what cannot be; warn about what probably should not."""
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
