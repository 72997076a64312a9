"""What every section of a configuration is made of: strict sections, components, and common types of values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Base of every configuration class: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Component(BaseModel):
    """A named component with settings of its own, e.g. ``{name: dirichlet, alpha: 0.5}``."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str = Field(min_length=1)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class UnfitValue(ValueError):
    """A value that does not suit other keys of its section; a section's model validator raises it.

    Args:
        key: the key in its section, dotted where it lies deeper.
        value: its value.
        expected: what would suit.
        fix: what to do about it.
    """

    def __init__(self, key: str, value: object, expected: str, fix: str = "") -> None:
        super().__init__(expected)
        self.key, self.value, self.expected, self.fix = key, value, expected, fix


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _switched(value: Any) -> Any:
    return "off" if value is False else value  # what YAML makes of a bare off


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("different names, each once")
    return names


AssetNames = Annotated[tuple[str, ...], AfterValidator(_different)]
Vectorize = Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=2)], BeforeValidator(_switched)]
ComponentField = Annotated[Component, BeforeValidator(_named)]
