"""A run's configuration: its sections, and how it is read."""

from __future__ import annotations

from fedlab.config.base import (
    Component,
    ComponentField,
    Fraction,
    Positive,
    ProperFraction,
    Section,
    UnfitValue,
    Vectorize,
)
from fedlab.config.federation import (
    AsynchronousConfig,
    AvailabilityConfig,
    DevicesConfig,
    FederationConfig,
    StopConfig,
    TrainingConfig,
)
from fedlab.config.sections import (
    Config,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    ExchangeConfig,
    TrackingConfig,
    apply_overrides,
    load_config,
    parse,
    read_yaml,
    set_dotted,
)

__all__ = [
    "AsynchronousConfig",
    "AvailabilityConfig",
    "Component",
    "ComponentField",
    "Config",
    "DataConfig",
    "DevicesConfig",
    "EngineConfig",
    "EvaluationConfig",
    "ExchangeConfig",
    "FederationConfig",
    "Fraction",
    "Positive",
    "ProperFraction",
    "Section",
    "StopConfig",
    "TrackingConfig",
    "TrainingConfig",
    "UnfitValue",
    "Vectorize",
    "apply_overrides",
    "load_config",
    "parse",
    "read_yaml",
    "set_dotted",
]
