"""Records what a run was given in Python: a method, a strategy, data, callbacks. A resumed run is given the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedlab.callbacks import Callback
from fedlab.callbacks.configured import described as described_callback
from fedlab.callbacks.configured import takes_settings
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
    """Return the configuration with a description of the given data as its data source.

    Args:
        config: the configuration.
        dataset: the data that was given in Python.
        resumed: whether the configuration is that of a run that is resumed; it is then returned as it is.

    Raises:
        DataError: the configuration describes other data that was given in Python.
    """
    if config.data.source.name == GIVEN_DATA:
        Given(parse(GivenSettings, config.data.source.settings, "data.source")).check(dataset)
    if resumed:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"source": described(dataset)})})


def record_method(config: Config, method: Method, *, resumed: bool) -> Config:
    """Return the configuration with the class and the settings of the given method.

    Args:
        config: the configuration.
        method: the method that was given in Python.
        resumed: whether the configuration is that of a run that is resumed; it is then returned as it is.

    Raises:
        ConfigError: a run that is resumed began with a method of another class or with other settings.
    """
    component = Component(name=reference(method), **method.settings.model_dump(mode="json"))
    if not resumed:
        return config.model_copy(update={"method": component})
    _same("method", component, config.method)
    return config


def record_strategy(config: Config, strategy: Any, settings: dict[str, Any] | None, *, resumed: bool) -> Config:
    """Return the configuration with the class and the settings of the given strategy.

    Args:
        config: the configuration.
        strategy: the strategy object.
        settings: the constructor arguments of the object; None if they are unknown, as those of an object that the user
            made. They are then read from its attributes, as far as this is possible.
        resumed: whether the configuration is that of a run that is resumed; it is then returned as it is.

    Raises:
        ConfigError: a run that is resumed began with a strategy of another class or with other settings.
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


def given_callbacks(callbacks: Sequence[Callback | type[Callback]]) -> list[Callback]:
    """Callback objects of what was given in Python: objects, or classes that are made with their default settings.

    Raises:
        ConfigError: something else was given, or a class cannot be made like this.
    """
    made = []
    for index, one in enumerate(callbacks):
        key, found = f"callbacks[{index}]", one
        if isinstance(found, type) and issubclass(found, Callback):
            if not takes_settings(found):
                raise ConfigError(key, one, "an object of this class, which needs arguments", "make one and give it")
            found = found(parse(found.Settings, {}, key))
        if not isinstance(found, Callback):
            raise ConfigError(key, one, "a fedlab.Callback, object or class", "derive it from fedlab.Callback")
        made.append(found)
    return made


def record_callbacks(config: Config, callbacks: Sequence[Callback], *, resumed: bool) -> Config:
    """Return the configuration with the classes and the settings of the given callbacks at the end of ``callbacks``.

    Args:
        config: the configuration.
        callbacks: the callbacks that were given in Python.
        resumed: whether the configuration is that of a run that is resumed; it is then returned as it is.

    Raises:
        ConfigError: a run that is resumed began with other callbacks.
    """
    components = [described_callback(one, reference(one)) for one in callbacks]
    if not resumed:
        return config.model_copy(update={"callbacks": (*config.callbacks, *components)})
    last = config.callbacks[len(config.callbacks) - len(components) :]
    if len(last) < len(components):
        expected = f"at most {len(config.callbacks)}, with which the run began"
        raise ConfigError("callbacks", f"{len(components)} callbacks", expected, "give the same as to fedlab.run")
    first = len(config.callbacks) - len(components)
    for index, (component, begun) in enumerate(zip(components, last, strict=True), start=first):
        _same(f"callbacks.{index}", component, begun)
    return config


def reference(component: object) -> str:
    """The ``module:Class`` of an object's class. It cannot be imported if a script or a function defines the class."""
    kind = type(component)
    return f"{kind.__module__}:{kind.__qualname__}"


def _same(key: str, given: Component, recorded: Component) -> None:
    """Check that a component has the recorded class name and settings. Its module may differ, as files are renamed."""
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
