"""Aggregation rules and server optimisers, each a subclass of Flower's Strategy."""

from __future__ import annotations

import inspect
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedlab.config import Component, parse
from fedlab.errors import ConfigError, did_you_mean
from fedlab.registry import Registry
from fedlab.server.strategies.average import AveragingStrategy

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
    constructor: Any = found
    if issubclass(found, AveragingStrategy):
        strategy: Strategy = constructor(parse(found.Settings, component.settings, key))
        return strategy
    accepted = [name for name in inspect.signature(found.__init__).parameters if name != "self"]
    for name, value in component.settings.items():
        if name not in accepted:
            raise ConfigError(f"{key}.{name}", value, "an argument of the strategy", did_you_mean(name, accepted))
    try:
        made: Strategy = constructor(**component.settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(key, component.settings, f"arguments {component.name} accepts", str(error)) from error
    return made
