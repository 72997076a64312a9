"""Differential privacy: the guarantees that a run can ask for; `fedlab.privacy.accountant` computes their cost."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedlab.config import Component, Positive, ProperFraction, Section, UnfitValue
from fedlab.errors import ConfigError
from fedlab.registry import Registry

__all__ = ["CLIP", "DPSGD", "KEY", "PRIVACY", "WITHIN", "Adaptive", "Central", "make_privacy"]

KEY = "privacy"
CLIP = "privacy-clip"
"""Key of the setting of a message that holds the L2 norm to which a client's update is clipped."""
WITHIN = "within_clip"
"""Name of a client's metric: the share of what it clips (update or gradients of examples) within the clip norm."""

PRIVACY = Registry("privacy", {"central": "fedlab.privacy:Central", "dp_sgd": "fedlab.privacy:DPSGD"}, "fedlab.privacy")


class Adaptive(Section):
    """Settings of a clip norm that follows a quantile of the updates' norms.

    Source: Andrew et al. 2021, arXiv 1905.03871, algorithm 1.
    """

    quantile: float = Field(default=0.5, ge=0, le=1, description="share γ of the updates that should not be clipped")
    rate: float = Field(default=0.2, gt=0, description="learning rate η_C of the clip norm in C ← C·exp(−η_C·(b − γ))")
    count_noise: float | None = Field(
        default=None,
        gt=0,
        description="σ_b, standard deviation of the noise on the count of updates that were not clipped; "
        "default: a 20th of the expected cohort, but at least noise_multiplier",
    )


class Central:
    """Client-level privacy of the models that a trusted server releases (McMahan et al. 2018, arXiv 1710.06963)."""

    class Settings(Section):
        """Settings of central privacy."""

        clip: float = Field(
            default=1.0, gt=0, description="largest L2 norm C of a client's update; its initial value with adaptive"
        )
        adaptive: Adaptive | None = Field(default=None, description="adapt C to a quantile of the norms of the updates")
        noise_multiplier: float = Field(
            default=1.0, ge=0, description="standard deviation z of the noise in units of C; 0 gives no guarantee"
        )
        delta: ProperFraction = Field(default=1e-5, description="δ for which ε is computed")
        allow_unaccounted: bool = Field(
            default=False, description="allow methods that send more than the mechanism covers; ε does not include it"
        )

        @model_validator(mode="after")
        def _noise_is_left_for_the_update(self) -> Central.Settings:
            count = self.adaptive.count_noise if self.adaptive else None
            if count is not None and 2 * count <= self.noise_multiplier:
                raise UnfitValue(
                    "adaptive.count_noise", count, "above noise_multiplier / 2: the count alone would cost more"
                )
            return self

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


class DPSGD:
    """Example-level privacy of all that a client sends, by noisy gradients (Abadi et al. 2016, arXiv 1607.00133)."""

    class Settings(Section):
        """Settings of DP-SGD. The noise is either given or computed from the wanted ε."""

        clip: float = Field(
            default=1.0,
            gt=0,
            description="largest L2 norm C of the gradient of one example over all trained parameters",
        )
        noise_multiplier: float | None = Field(
            default=None,
            ge=0,
            description="standard deviation σ of the noise on the sum of a batch in units of C; 0 gives no guarantee",
        )
        target_epsilon: float | None = Field(
            default=None,
            gt=0,
            description="ε that a client may spend if it trains in every round; replaces noise_multiplier",
        )
        delta: ProperFraction = Field(
            default=1e-5, description="δ for which ε is computed; should be well below 1 / examples"
        )
        physical_batch_size: Positive = Field(
            default=32,
            description="number of examples whose gradients are in memory at the same time; changes results only by "
            "rounding",
        )

        @model_validator(mode="after")
        def _noise_is_known(self) -> DPSGD.Settings:
            if (self.noise_multiplier is None) == (self.target_epsilon is None):
                raise UnfitValue("noise_multiplier", self.noise_multiplier, "either noise_multiplier or target_epsilon")
            return self

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


def make_privacy(component: Component | None) -> Central | DPSGD | None:
    """The configured guarantee with validated settings; None if none is configured.

    Raises:
        ConfigError, ConfigErrors: unknown name or setting.
    """
    if component is None:
        return None
    found, settings = PRIVACY.configured(component, KEY)
    made = found(settings)
    if not isinstance(made, Central | DPSGD):
        raise ConfigError(f"{KEY}.name", component.name, "a guarantee of `fedlab list privacy` or a subclass of one")
    return made
