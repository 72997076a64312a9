"""Aggregation rules and server optimizers, each a subclass of Flower's Strategy."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedlab.config import Component, Section, parse
from fedlab.errors import ConfigError
from fedlab.registry import GIVEN, Registry
from fedlab.server.strategies.arguments import KEY, arguments_model, check_participants, construct
from fedlab.server.strategies.average import AveragingRounds, AveragingStrategy
from fedlab.server.strategies.flower import FlowerRounds, seen_part
from fedlab.server.strategies.rounds import RoundStrategy

__all__ = [
    "GIVEN",
    "STRATEGIES",
    "Strategy",
    "check_participants",
    "make_strategy",
    "round_strategy",
    "strategy_settings",
]

_FLOWER = (
    "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedMedian", "FedProx", "FedTrimmedAvg", "FedYogi",
    "Krum", "MultiKrum", "Bulyan", "QFedAvg",
)  # fmt: skip

STRATEGIES = Registry(
    "strategy",
    {
        "fedavg": "fedlab.server.strategies.average:FedAvg",
        "fedprox": "fedlab.server.strategies.average:FedProx",
        "fednova": "fedlab.server.strategies.fednova:FedNova",
        "scaffold": "fedlab.server.strategies.scaffold:Scaffold",
        "feddyn": "fedlab.server.strategies.feddyn:FedDyn",
        **{
            name.lower(): f"fedlab.server.strategies.fedopt:{name}"
            for name in ("FedAvgM", "FedAdagrad", "FedAdam", "FedYogi")
        },
        **{f"flower.{name}": f"flwr.serverapp.strategy:{name}" for name in _FLOWER},
    },
    "fedlab.strategies",
)


def make_strategy(component: Component, given: object = None) -> Strategy:
    """The strategy of a run. FedLab's own take their `Settings`, Flower's their constructor arguments.

    Args:
        component: names the strategy and holds its settings.
        given: a strategy of the user's own in its place: an object, or a class that takes the settings.

    Raises:
        ConfigError, ConfigErrors: unknown strategy or setting, or a combination the strategy refuses.
    """
    if isinstance(given, Strategy):
        return _heeded(given)
    if given is None and component.name == GIVEN:
        raise ConfigError(
            KEY,
            component.settings.get("of", GIVEN),
            "the strategy object that this was run with: not all of its constructor arguments could be recorded "
            f"({', '.join(component.settings.get('unknown', ()))})",
            "make it again in Python and give it to fedlab.run(config, strategy=…) or fedlab.resume(run, strategy=…)",
        )
    found = STRATEGIES.find(component.name, f"{KEY}.name") if given is None else given
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        key, value = (f"{KEY}.name", component.name) if given is None else ("strategy", given)
        raise ConfigError(key, value, "flwr.serverapp.strategy.Strategy, as a subclass or one's object")
    if issubclass(found, AveragingStrategy):
        return _heeded(found(parse(found.Settings, component.settings, KEY)))
    return construct(found, component)


def _heeded(strategy: Strategy) -> Strategy:
    """Refuse a strategy whose changes would have no effect in FedLab's loop.

    Raises:
        ConfigError: a subclass of a strategy of FedLab's changes methods that only Flower's own loop calls.
    """
    kind, instead = type(strategy), {"configure_train": "compose", "aggregate_train": "combine"}
    for method, ours in instead.items() if isinstance(strategy, AveragingStrategy) else ():
        if getattr(kind, method) is not getattr(AveragingStrategy, method):
            expected = f"a strategy that changes {ours}() instead of {method}(), which FedLab's loop does not call"
            raise ConfigError(KEY, kind.__name__, expected, f"rename it to {ours}() or derive from Flower's strategy")
    return strategy


def round_strategy(strategy: Strategy, grid: Grid, training: Iterable[int] | None, seed: int) -> RoundStrategy:
    """The strategy as the round loop uses it.

    Args:
        strategy: one of FedLab's own, of Flower's, or of a user's.
        grid: reaches the clients.
        training: node ids of the clients that may train; None for all.
        seed: the run's seed.
    """
    if isinstance(strategy, AveragingStrategy):
        return AveragingRounds(strategy)
    return FlowerRounds(strategy, grid if training is None else seen_part(grid, training), grid, seed)


def strategy_settings(found: object) -> type[Section] | None:
    """The class that validates the settings of a strategy class; None where it is none."""
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        return None
    return found.Settings if issubclass(found, AveragingStrategy) else arguments_model(found)
