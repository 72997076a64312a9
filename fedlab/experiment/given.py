"""Records what a run was given in Python: a method, a strategy, a sampler, a model, data or callbacks.

A run that is resumed has to be given the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedlab.callbacks import Callback
from fedlab.callbacks.configured import described as described_callback
from fedlab.callbacks.configured import takes_settings
from fedlab.config import Component, Config, Section, parse
from fedlab.config.overrides import Change, Overrides, changes, plain
from fedlab.config.walk import within
from fedlab.data.adapters import as_dataset
from fedlab.data.samples import Dataset
from fedlab.data.sources.given import Given, GivenSettings, described
from fedlab.errors import ConfigError
from fedlab.method import Method
from fedlab.models import GivenNetwork
from fedlab.models.given import reference, settings_class
from fedlab.registry import GIVEN
from fedlab.server.participation.samplers import Sampler
from fedlab.server.strategies.arguments import known_arguments
from fedlab.server.strategies.average import AveragingStrategy


@dataclass(frozen=True)
class GivenParts:
    """What `fedlab.run` and `fedlab.resume` are given in Python beside the configuration.

    Args:
        method: a method, object or class.
        strategy: a strategy, object or class.
        sampler: a sampler, object or class.
        model: an `nn.Module`, a factory of one, or the name of a model, with settings if it is a mapping.
        data: whatever `fedlab.as_dataset` accepts.
        overrides: changes to the configuration.
        callbacks: callbacks, objects or classes, beside those of the configuration.
    """

    method: Any = None
    strategy: Any = None
    sampler: Any = None
    model: Any = None
    data: Any = field(default=None, repr=False)
    overrides: Overrides = ()
    callbacks: Sequence[Callback | type[Callback]] = ()

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data that was given; None if none was.

        Raises:
            DataError: it cannot be used.
        """
        return None if self.data is None else as_dataset(self.data)

    @property
    def named_model(self) -> bool:
        """Whether the model is named, as in a configuration."""
        return isinstance(self.model, str | Mapping | Component)

    @property
    def replaced(self) -> dict[str, str]:
        """Keys of the components that are replaced by what was given, with the names of classes that have settings."""
        found = {"data.source": ""} if self.data is not None else {}
        if self.model is not None and not self.named_model:
            found["model"] = self.model.__name__ if settings_class(self.model) else ""
        if self.sampler is not None:
            found["federation.sampler"] = self.sampler.__name__ if isinstance(self.sampler, type) else ""
        return found

    @property
    def changes(self) -> list[Change]:
        """All changes to the configuration, in their order.

        Raises:
            ConfigError: the model is given twice.
        """
        asked = changes(self.overrides, Config)
        for key, value in asked if self.model is not None else ():
            if key in ("model", "model.name"):
                raise ConfigError(key, value, "one model: model=… names another", "leave one of the two out")
        return [*([("model", plain(self.model, "model"))] if self.named_model else []), *asked]

    def network(self, config: Config, *, resumed: bool) -> GivenNetwork | None:
        """The network that was given; None if the configuration names the model.

        Args:
            config: the configuration, in which the section ``model`` describes what was given or has its settings.
            resumed: whether the configuration is that of a run that is resumed.

        Raises:
            ConfigError: it is no network; or a run that is resumed began with another one.
            ConfigErrors: its settings are wrong.
        """
        if self.model is None or (self.named_model and not resumed):
            return None
        if self.named_model:
            fix = "leave model=… out: the run has recorded its model"
            raise ConfigError("model", self.model, "no name, but the network that the run was given in Python", fix)
        if resumed:
            own = reference(self.model) if settings_class(self.model) else GIVEN
            if _class_name(Component(name=own)) != _class_name(Component(name=config.model.name)):
                began = config.model.settings.get("of", config.model.name)
                raise ConfigError("model", reference(self.model), f"the model that the run began with, {began}")
        network = GivenNetwork(self.model, config.model)
        if resumed and network.configurable:
            _same("model", network.described((), 0), config.model)
        return network


def record_data(config: Config, dataset: Dataset, *, resumed: bool, asked: Overrides = ()) -> Config:
    """Return the configuration with a description of the given data as its data source.

    Data that comes with its own clients is divided among them, whatever the configuration says.

    Args:
        config: the configuration.
        dataset: the data that was given in Python.
        resumed: whether the configuration is that of a run that is resumed; it is then returned as it is.
        asked: changes that the user has made to the configuration.

    Raises:
        ConfigError: the data comes with its own clients, and the user asks for another partition.
        DataError: the configuration describes other data that was given in Python.
    """
    if config.data.source.name == GIVEN:
        Given(parse(GivenSettings, config.data.source.settings, "data.source")).check(dataset)
    if resumed:
        return config
    changed: dict[str, Any] = {"source": described(dataset)}
    if dataset.divided:
        for key, value in changes(asked, Config):
            if within(key, ["data.partition"]):
                expected = "no partition, because the data that was given comes with its own"
                fix = "leave it out, or give the data without the partition"
                raise ConfigError(key, value, expected, fix)
        changed["partition"] = (Component(name="natural"),)
    return config.model_copy(update={"data": config.data.model_copy(update=changed)})


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
        component = Component(name=GIVEN, of=component.name, arguments=settings, unknown=unknown)
    if resumed:
        _same("federation.strategy", component, config.federation.strategy)
        return config
    federation = config.federation.model_copy(update={"strategy": component})
    return config.model_copy(update={"federation": federation})


def record_sampler(config: Config, sampler: Sampler, *, made: bool, resumed: bool) -> Config:
    """Return the configuration with the class of the given sampler, and its settings where it has some.

    Args:
        config: the configuration.
        sampler: the sampler object.
        made: whether it was made of the class that the user gave, with the settings of the configuration and the run's
            seed, so that it can be made again.
        resumed: whether the configuration is that of a run that is resumed; it is then returned as it is.

    Raises:
        ConfigError: a run that is resumed began with a sampler of another class or with other settings.
    """
    found: Any = getattr(sampler, "settings", None)
    if made:
        found = parse(type(sampler).Settings, config.federation.sampler.settings, "federation.sampler")  # type: ignore[attr-defined]  # `make_sampler` has checked it
    settings = found.model_dump(mode="json") if isinstance(found, Section) else {}
    component = Component(name=reference(sampler), **settings)
    if not made:
        component = Component(name=GIVEN, of=component.name, **settings)
    if resumed:
        _same("federation.sampler", component, config.federation.sampler)
        return config
    return config.model_copy(update={"federation": config.federation.model_copy(update={"sampler": component})})


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


def _same(key: str, given: Component, recorded: Component) -> None:
    """Check that a component has the recorded class name and settings. Its module may differ, as files are renamed."""
    ours, theirs = ((_class_name(one), one.settings) for one in (given, recorded))
    if ours[0] != theirs[0]:
        began = recorded.settings.get("of", recorded.name)
        raise ConfigError(key, given.settings.get("of", given.name), f"the class that the run began with, {began}")
    known = (ours[1].keys() & theirs[1].keys()) - {"of"}  # the class with its module, which may differ
    for name in sorted(known):
        if ours[1][name] != theirs[1][name]:
            raise ConfigError(
                f"{key}.{name}", ours[1][name], f"what the run began with: {theirs[1][name]!r}", "give it the same"
            )


def _class_name(component: Component) -> str:
    name = str(component.settings.get("of", component.name))
    return name.rpartition(":")[2].rpartition(".")[2]
