"""What a run was given in Python instead of a configuration: how it is recorded, and told from another one later."""

from __future__ import annotations

from typing import Any

from fedlab.config import Component, Config, parse
from fedlab.data.samples import Dataset
from fedlab.data.sources.given import GIVEN as GIVEN_DATA
from fedlab.data.sources.given import Given, GivenSettings, described
from fedlab.errors import ConfigError
from fedlab.method import Method
from fedlab.server.strategies import GIVEN as GIVEN_STRATEGY
from fedlab.server.strategies.arguments import known_arguments
from fedlab.server.strategies.average import AveragingStrategy


def record_data(config: Config, dataset: Dataset, *, resumed: bool) -> Config:
    """The configuration with the data it was given in place of its data source.

    Args:
        config: it.
        dataset: what was given.
        resumed: the configuration is that of a run which goes on, and stays as it is.

    Raises:
        DataError: the configuration is that of a run with other data.
    """
    if config.data.source.name == GIVEN_DATA:
        Given(parse(GivenSettings, config.data.source.settings, "data.source")).check(dataset)
    if resumed:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"source": described(dataset)})})


def record_method(config: Config, method: Method, *, resumed: bool) -> Config:
    """The configuration with the method it was given.

    Raises:
        ConfigError: a run that goes on began with another class or other settings.
    """
    component = Component(name=reference(method), **method.settings.model_dump(mode="json"))
    if not resumed:
        return config.model_copy(update={"method": component})
    _same("method", component, config.method)
    return config


def record_strategy(config: Config, strategy: Any, settings: dict[str, Any] | None, *, resumed: bool) -> Config:
    """The configuration with the strategy it was given.

    Args:
        config: it.
        strategy: the object.
        settings: what it was made with; None where that can only be seen from outside.
        resumed: as in `record_data`.

    Raises:
        ConfigError: a run that goes on began with another class or other settings.
    """
    unknown: list[str] = []
    if isinstance(strategy, AveragingStrategy):
        settings = strategy.settings.model_dump(mode="json")
    elif settings is None:
        settings, unknown = known_arguments(strategy)
    component = Component(name=reference(strategy), **settings)
    if unknown:
        component = Component(name=GIVEN_STRATEGY, of=component.name, arguments=settings, unknown=unknown)
    if resumed:
        _same("federation.strategy", component, config.federation.strategy)
        return config
    federation = config.federation.model_copy(update={"strategy": component})
    return config.model_copy(update={"federation": federation})


def reference(component: object) -> str:
    """The ``module:Class`` of an object's class; one of a program itself or of a function cannot be imported again."""
    kind = type(component)
    return f"{kind.__module__}:{kind.__qualname__}"


def _same(key: str, given: Component, recorded: Component) -> None:
    """Refuse what would change the result; where a class lies now may differ, as programs are renamed."""
    ours, theirs = ((_class_name(one), one.settings) for one in (given, recorded))
    if ours[0] != theirs[0]:
        raise ConfigError(key, given.name, f"the class that the run began with, {recorded.name}")
    known = ours[1].keys() & theirs[1].keys()
    for name in sorted(known):
        if ours[1][name] != theirs[1][name]:
            raise ConfigError(
                f"{key}.{name}", ours[1][name], f"what the run began with: {theirs[1][name]!r}", "give it the same"
            )


def _class_name(component: Component) -> str:
    name = str(component.settings.get("of", component.name))
    return name.rpartition(":")[2].rpartition(".")[2]
