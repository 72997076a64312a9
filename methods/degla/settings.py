"""Settings of DeGLA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.config.sections import HubPath
from fedlab.errors import ConfigError
from fedlab.models.clip import CLIPSettings

Trained = Literal["all", "text", "projections"]
Teacher = Literal["server_ema", "client_state", "frozen"]

TRAINED: Mapping[Trained, tuple[str, ...]] = {
    "all": (),
    "text": ("text_model", "text_projection", "logit_scale"),
    "projections": ("text_projection", "visual_projection", "logit_scale"),
}
"""What is trained, as prefixes of state names; none stands for everything."""


class PretrainSettings(Section):
    """Stage 0: plain CLIP training on the server's own pairs, before the first round."""

    steps: int = Field(default=0, ge=0, description="number of steps; 0: no pretraining")
    batch_size: Positive = 96
    lr: float = Field(default=1e-3, gt=0, description="learning rate, which decays to 0 along a cosine")


class DeGLASettings(Section):
    """Settings of DeGLA; weights and α are the paper's."""

    contrast: Literal["all", "own", "none"] = Field(
        default="all",
        description="false captions in L_base: all: those of the whole batch (as released); own: those of the "
        "same row (Eq. 4); none: no false captions",
    )
    lambda_igc: float = Field(default=0.1, ge=0, description="weight λ1 of the image-grounded contrast")
    lambda_tgc: float = Field(default=0.1, ge=0, description="weight λ2 of the text-grounded contrast")
    lambda_distill: float = Field(
        default=1.28,
        ge=0,
        description="weight λ3 of the distillation per sample; 1.28 equals the paper's 0.005 on a sum over its "
        "batch of 256",
    )
    tgc_layout: Literal["paper", "released"] = Field(
        default="paper",
        description="false captions of TGC: paper: those of the same caption; released: those that the mask in "
        "the released code selects",
    )
    alpha: float = Field(default=0.9996, ge=0, le=1, description="decay α of the teacher's moving average in each step")
    teacher: Teacher = Field(
        default="server_ema",
        description="what happens to the teacher between rounds: the server keeps and sends it, each client keeps "
        "its own, or it never changes",
    )
    train: Trained = Field(
        default="all", description="what is trained and sent: everything, the text encoder, or the projections"
    )
    held_out: tuple[str, ...] = Field(
        default=(), description="kinds of false captions that are only used in tests and not in training"
    )
    unpooled: tuple[str, ...] = Field(
        default=(),
        description="kinds that are not part of the pooled accuracy, because they can be recognized without the image",
    )
    merge: tuple[tuple[str, ...], ...] = Field(
        default=(),
        description="kinds that share one of the K places; in every step it is drawn which of them a sample uses",
    )
    crop: float = Field(
        default=0.9, gt=0, le=1, description="smallest share of the area that a random resized crop keeps; 1: no crop"
    )
    pretrained: HubPath | None = Field(
        default=None,
        description="CLIP checkpoint: a hub name or a folder; it also sets the size of the model",
    )
    network: CLIPSettings | None = Field(default=None, description="size of the model; default: a tiny one")
    pretrain: PretrainSettings = PretrainSettings()

    @property
    def teaches(self) -> bool:
        """Whether any term needs a teacher."""
        return bool(self.lambda_tgc or self.lambda_distill)

    @property
    def needs_negatives(self) -> bool:
        """Whether any term but the distillation needs false captions."""
        return self.contrast != "none" or bool(self.lambda_igc or self.lambda_tgc)


def check(s: DeGLASettings, config: Any) -> list[str]:
    """Warnings about a configuration.

    Raises:
        ConfigError: initial weights are given twice, or for the teacher.
    """
    starts = [
        key
        for key, given in {
            "method.pretrained": s.pretrained,
            "method.pretrain.steps": s.pretrain.steps,
            "init.student": "student" in config.init,
        }.items()
        if given
    ]
    if len(starts) > 1:
        raise ConfigError(starts[-1], starts, "one start for the student", f"set one of {', '.join(starts)} only")
    if "teacher" in config.init:
        raise ConfigError(
            "init.teacher", config.init["teacher"], "no such key", "the teacher starts as the student does"
        )
    training = config.training
    steps = None if training.local_steps is None else training.local_steps * config.federation.rounds
    horizon = float("inf") if s.alpha == 1 else 1 / (1 - s.alpha)
    moves = s.teaches and s.teacher != "frozen"
    warnings = {
        "the student starts from random weights, so the teacher has nothing to preserve": (s.teaches and not starts),
        f"method.alpha = {s.alpha}: the teacher's horizon of {horizon:.0f} steps exceeds the run's {steps}; the "
        "paper's is about a third": moves and steps is not None and s.alpha < 1 and horizon > steps,
        f"training.batch_size = {training.batch_size}: L_base contrasts the pairs of a batch": training.batch_size < 8,
    }
    return [text for text, holds in warnings.items() if holds]
