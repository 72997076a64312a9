"""Aggregation rules and server optimisers, each a subclass of Flower's Strategy."""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import Strategy

from fedlab.config import Component, parse
from fedlab.errors import ConfigError
from fedlab.registry import Registry
from fedlab.server.strategies.arguments import check_participants, construct
from fedlab.server.strategies.average import AveragingStrategy

__all__ = ["STRATEGIES", "check_participants", "make_strategy"]

_FLOWER = (
    "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedMedian", "FedProx", "FedTrimmedAvg", "FedYogi",
    "Krum", "MultiKrum", "Bulyan", "QFedAvg",
)  # fmt: skip

STRATEGIES = Registry(
    "strategy",
    {
        "fedavg": "fedlab.server.strategies.average:FedAvg",
        "fedprox": "fedlab.server.strategies.average:FedProx",
        **{f"flower.{name}": f"flwr.serverapp.strategy:{name}" for name in _FLOWER},
    },
    "fedlab.strategies",
)


def make_strategy(component: Component) -> Strategy:
    """The configured strategy. FedLab's own take their `Settings`, Flower's their constructor arguments.

    Raises:
        ConfigError, ConfigErrors: unknown strategy or setting, or a combination the strategy refuses.
    """
    key = "federation.strategy"
    found: Any = STRATEGIES.find(component.name, f"{key}.name")
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ConfigError(f"{key}.name", component.name, "a subclass of flwr.serverapp.strategy.Strategy")
    if issubclass(found, AveragingStrategy):
        return found(parse(found.Settings, component.settings, key))
    return construct(found, component)
