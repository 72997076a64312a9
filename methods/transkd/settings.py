"""Settings of TransKD."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from fedlab.config import Positive, Section, UnfitValue
from fedlab.config.sections import HubPath
from fedlab.errors import ConfigError
from fedlab.method import Task
from fedlab.methods.transkd.distiller import HEADS
from fedlab.models import is_default_model
from fedlab.models.segformer import B2, SegFormerSettings, check_masks


class TransKDSettings(Section):
    """Settings of TransKD; defaults are the paper's."""

    variant: Literal["base", "gl", "ea"] = Field(
        default="base",
        description="base: CSF and PEA; gl: base with the GL-Mixer; ea: base with the Embedding Assistant",
    )
    student: SegFormerSettings = SegFormerSettings()
    teacher: SegFormerSettings = B2
    csf: bool = Field(default=True, description="distil feature maps (Cross Selective Fusion)")
    csf_width: Positive = Field(default=64, description="number of channels in which the stages are fused, m")
    csf_squeeze: Positive | None = Field(
        default=None, description="squeezed width L of the fusion; default: max(m/16, 32)"
    )
    pea: Literal["all", "none", 1, 2, 3, 4] = Field(
        default="all",
        description="stages whose patch embeddings are distilled (PEA): all, none, or a single one, which then "
        "has weight 1",
    )
    pea_weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = Field(
        default=(0.1, 0.1, 0.5, 1.0), description="weights β of the four stages"
    )
    gl_residual: bool = Field(
        default=False, description="with variant gl: add the embedding to the output of the mixer"
    )
    class_weights: tuple[NonNegativeFloat, ...] | None = Field(
        default=None,
        description="weights of the classes in the cross-entropy, the same for every client; default: equal weights",
    )
    void_logit: bool = Field(
        default=False,
        description="add one output that is never a target, like the 20th output for Cityscapes in the authors' code",
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    translate: int = Field(default=2, ge=0, description="largest random shift of images and masks, in mask pixels")
    horizon: Positive | None = Field(
        default=None,
        description="number of rounds in which the learning rate falls linearly to 0; default: training.schedule "
        "applies",
    )
    distiller: Literal["shared", "local"] = Field(
        default="shared",
        description="shared: the modules that map student to teacher features are averaged; local: each client "
        "keeps its own",
    )
    buffers: Literal["average", "local"] = Field(
        default="average",
        description="average: running statistics of BatchNorm are averaged; local: each client keeps its own",
    )
    pretrained: HubPath | None = Field(
        default=None, description="checkpoint of the teacher, a SegFormer or its encoder: a hub name or a folder"
    )
    teacher_steps: int = Field(
        default=0,
        ge=0,
        description="steps in which the server trains the teacher on its sample set 'teacher' before round 1",
    )
    teacher_batch: Positive = Field(default=8, description="batch size of these steps")

    @model_validator(mode="after")
    def _variant_has_its_stages(self) -> TransKDSettings:
        if self.variant == "gl" and self.pea not in ("all", 4):
            raise UnfitValue("pea", self.pea, "all, or 4 with variant: gl, which mixes the embeddings of stage 4")
        if self.variant == "ea" and self.pea != "all":
            raise UnfitValue("pea", self.pea, "all with variant: ea, which assists the embeddings of all stages")
        if self.variant == "gl" and self.student.widths[3] % HEADS:
            raise UnfitValue(
                "student.widths",
                self.student.widths,
                f"widths that end in a multiple of {HEADS}, the heads of variant: gl",
            )
        return self

    @property
    def stages(self) -> tuple[int, ...]:
        """Stages whose embeddings are aligned, from 0."""
        if self.pea == "all":
            return 0, 1, 2, 3
        return () if self.pea == "none" else (self.pea - 1,)

    @property
    def betas(self) -> dict[int, float]:
        """β by stage from 0; a stage on its own counts 1."""
        return {stage: self.pea_weights[stage] if self.pea == "all" else 1.0 for stage in self.stages}

    @property
    def distils(self) -> bool:
        """Whether there is a teacher at all."""
        return self.csf or self.pea != "none"

    @property
    def squeeze(self) -> int:
        """L."""
        return self.csf_squeeze or max(self.csf_width // 16, 32)


def check(s: TransKDSettings, config: Any) -> list[str]:
    """Warnings about a configuration.

    Raises:
        ConfigError: the teacher would never be trained.
    """
    if s.distils and not (s.teacher_steps or s.pretrained or "teacher" in config.init):
        raise ConfigError(
            "method.teacher_steps",
            0,
            "a trained teacher",
            "set method.teacher_steps for data with a server sample set 'teacher', method.pretrained to a checkpoint, "
            "or init: {teacher: RUN}; method.csf=false and method.pea=none train the student alone",
        )
    warnings = {
        "model is not used: the networks are method.student and method.teacher": not is_default_model(config.model),
        "method.horizon replaces training.schedule": bool(s.horizon) and config.training.schedule != "constant",
        f"method.horizon = {s.horizon} ends before {config.federation.rounds} rounds: the last have a rate of 0": (
            s.horizon is not None and s.horizon < config.federation.rounds
        ),
        "method.variant changes nothing without distillation": not s.distils and s.variant != "base",
        "method.buffers = local: the server's running statistics stay untrained, so its evaluation is meaningless": (
            s.buffers == "local"
        ),
    }
    return [text for text, holds in warnings.items() if holds]


def check_task(s: TransKDSettings, task: Task) -> None:
    """Refuse data on which these networks cannot be trained.

    Raises:
        ConfigError: no masks, masks of another size than the logits, maps too small, or weights of other classes.
    """
    check_masks(task)
    height, width = task.input_shape[1:]
    if s.csf and max(height, width) <= 32:
        found, fix = f"images {height}×{width}", "CSF needs more than one position in stage 4"
        raise ConfigError("data.source", found, "more than 32 pixels", fix)
    if s.class_weights is not None and len(s.class_weights) != task.num_classes:
        expected = f"{task.num_classes}: {', '.join(task.class_names)}"
        raise ConfigError("method.class_weights", f"{len(s.class_weights)} numbers", expected)
