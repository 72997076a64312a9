"""Settings of LGViT."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedlab.config import Fraction, Positive, Section, UnfitValue
from fedlab.config.sections import HubPath
from fedlab.errors import ConfigError

Kind = Literal["lph_dw", "lph", "gah2", "gah3", "linear", "block"]
"""What an exit consists of. The number in ``gah2`` and ``gah3`` is the stride r of the sub-sampling."""
Rule = Literal["confidence", "entropy", "patience", "patient_and_confident"]
Share = Annotated[float, Field(ge=0, le=1)]

LAYOUTS: dict[int, tuple[Kind, ...]] = {
    2: ("lph_dw", "gah2"),
    4: ("lph_dw", "lph", "gah2", "gah3"),
    6: ("lph_dw", "lph", "gah2", "gah2", "gah3", "gah3"),
    8: ("lph_dw", "lph_dw", "lph", "lph", "gah2", "gah2", "gah3", "gah3"),
}
"""The paper's heads by the number of exits."""
THRESHOLDS: dict[Rule, float] = {"confidence": 0.8, "entropy": 0.6, "patience": 7, "patient_and_confident": 0.5}
"""The thresholds of the authors' scripts, and of their code where a script gives none."""


class LGViTSettings(Section):
    """Settings of LGViT; defaults are those of the authors' code for ViT-B/16."""

    # backbone (§3.1)
    patch: Positive = Field(default=16, description="height and width of a patch in pixels")
    width: Positive = Field(default=768, description="width of a token, C")
    depth: int = Field(default=12, ge=2, description="number of layers, L")
    heads: Positive = Field(default=12, description="number of attention heads of a layer, a divisor of width")
    mlp_ratio: Positive = 4
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth in the last layer")
    distillation_token: bool = Field(
        default=False, description="a second special token with a classifier of its own, as in DeiT"
    )
    init_std: float = Field(
        default=0.02,
        gt=0,
        description="standard deviation of the initial tokens, positions and weights of the layers' linear maps. 0.02 "
        "suits a width of several hundred; narrow networks that start from nothing need 0.02 · √(768 / width) or more",
    )
    pretrained: HubPath | None = Field(
        default=None,
        description="hub name or folder of a ViT checkpoint that the backbone starts from, or of a DeiT checkpoint "
        "with a distillation token",
    )
    # exits (§3.1)
    exits: tuple[Positive, ...] = Field(
        default=(4, 5, 6, 7, 8, 9, 10, 11), min_length=1, description="the layers, from 1, after which there is an exit"
    )
    kinds: tuple[Kind, ...] = Field(
        default=(),
        description="the head of every exit: lph_dw and lph are local perception heads with and without the depth-wise "
        "convolution, gah2 and gah3 are global aggregation heads of stride 2 and 3, linear is a classifier of the "
        "normalized class token, block a transformer layer before it; default: the paper's for 2, 4, 6 and 8 exits",
    )
    aggregation_heads: Positive = Field(
        default=8, description="number of attention heads of a global aggregation head, a divisor of width"
    )
    head_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in local perception heads")
    # stages (§3.2 to §3.5)
    finetune_rounds: int = Field(
        default=0, ge=0, description="rounds of stage 0, in which the backbone is trained without exits"
    )
    joint_rounds: int = Field(
        default=50,
        ge=0,
        description="rounds of stage 1, in which backbone and exits are trained; stage 2, in which the last layer "
        "teaches the exits, has all rounds that are left",
    )
    distill_lr: float | None = Field(
        default=None, gt=0, description="learning rate at the start of stage 2; default: training.lr"
    )
    decay: Literal["linear", "constant"] = Field(
        default="linear", description="linear: in every stage the learning rate falls to 0; constant: it stays"
    )
    alpha: Share = Field(default=0.3, description="weight of the last layer's predictions in stage 2, α")
    temperature: float = Field(default=2.0, gt=0, description="temperature of these predictions, T")
    lambda_hete: float = Field(
        default=0.01, ge=0, description="weight of the distance of heads' features to the last layer's, λ_hete"
    )
    lambda_homo: float = Field(
        default=0.01, ge=0, description="weight of the distance between features of heads of one family, λ_homo"
    )
    teacher_norm: bool = Field(
        default=True,
        description="whether the last layer is normalized before it teaches, as it is for inference; false: as in the "
        "authors' code",
    )
    detach_homo: bool = Field(
        default=False, description="whether the last head of a family gets no gradient as teacher of the others"
    )
    # training samples (§3.5)
    crop: Fraction = Field(
        default=0.08, description="smallest share of the area that a random resized crop keeps; 1: no crop"
    )
    flip: bool = Field(default=True, description="mirror half of the images; not suitable for digits")
    # inference (§3.6)
    rule: Rule = Field(
        default="confidence",
        description="when a sample leaves. confidence: the largest probability is above the threshold; entropy: the "
        "entropy is below it; patience: the last `threshold` exits predict the same class; patient_and_confident: the "
        "entropy is below it at two exits in succession",
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        description="threshold τ of the rule; default: 0.8, 0.6, 7 or 0.5, by the order of the rules",
    )
    tolerance: Share | None = Field(
        default=None,
        description="if it is set, every client chooses the fastest threshold of `curve` whose accuracy on its "
        "validation samples (data.validation) is lower by at most this than that of the last layer",
    )
    curve: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
        description="thresholds of the rule for which accuracy and speed-up are reported as well",
    )
    timed: int = Field(
        default=16, ge=0, description="number of a client's test samples whose inference is timed, one by one"
    )

    @model_validator(mode="after")
    def _exits_fit(self) -> LGViTSettings:
        if list(self.exits) != sorted(set(self.exits)) or self.exits[-1] >= self.depth:
            raise UnfitValue(
                "exits",
                self.exits,
                f"exits that rise and are below depth = {self.depth}, after which the network ends anyway",
            )
        if not self.kinds and len(self.exits) not in LAYOUTS:
            raise UnfitValue(
                "kinds", self.kinds, f"kinds, one for each exit: the paper has none for {len(self.exits)} exits"
            )
        if self.kinds and len(self.kinds) != len(self.exits):
            raise UnfitValue("kinds", self.kinds, f"{len(self.exits)} kinds, one for each exit")
        return self

    @model_validator(mode="after")
    def _thresholds_fit(self) -> LGViTSettings:
        for key, value in (("threshold", self.limit), *(("curve", one) for one in self.curve)):
            if self.rule == "confidence" and value > 1:
                raise UnfitValue(key, value, "at most 1: confidence is a probability")
            if self.rule == "patience" and (value < 1 or value != int(value)):
                raise UnfitValue(key, value, "a whole number from 1: patience counts exits")
        return self

    @property
    def head_kinds(self) -> tuple[Kind, ...]:
        """The head of every exit."""
        return self.kinds or LAYOUTS[len(self.exits)]

    @property
    def limit(self) -> float:
        """The threshold of the rule."""
        return THRESHOLDS[self.rule] if self.threshold is None else self.threshold


def check(settings: LGViTSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used."""
    s, training = settings, config.training
    for key, count in (("heads", s.heads), ("aggregation_heads", s.aggregation_heads)):
        if s.width % count:
            raise ConfigError(f"method.{key}", count, f"a divisor of method.width = {s.width}")
    if s.tolerance is not None and (config.data is None or config.data.validation is None):
        fix = "set data.validation, such as 0.2, or leave method.tolerance out and set method.threshold"
        raise ConfigError("method.tolerance", s.tolerance, "validation samples to choose a threshold on", fix)
    if s.tolerance is not None and not s.curve:
        raise ConfigError("method.curve", [], "thresholds to choose from, because method.tolerance is set")
    distilled = config.federation.rounds - s.finetune_rounds - s.joint_rounds
    started = s.pretrained is not None or bool(config.init)
    warnings = {
        "training.local_steps is not set: clients with different numbers of samples then take different numbers of "
        "steps, so that some train their exits while others train the last classifier": training.local_steps is None
        and s.joint_rounds > 0,
        "training.local_steps = 1: in half of the rounds no client trains an exit": training.local_steps == 1
        and s.joint_rounds > 0,
        f"training.batch_size = {training.batch_size}: local perception heads normalize over the batch; 16 or more are "
        "better": training.batch_size < 16 and any(kind in ("lph", "lph_dw") for kind in s.head_kinds),
        "method.joint_rounds leaves no round for stage 2: the last layer never teaches the exits": distilled == 0,
        "method.joint_rounds = 0 and no trained weights to start from: stage 2 trains exits on a random "
        "network": not s.joint_rounds and not s.finetune_rounds and not started,
        f"training.optimizer = {training.optimizer!r}: the authors use adamw": training.optimizer != "adamw",
    }
    return [text for text, holds in warnings.items() if holds]
