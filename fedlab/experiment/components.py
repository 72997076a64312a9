"""Finds the components in a configuration, adds or removes their default settings, and replaces paths in them.

A component that is unknown or has wrong settings is left as it is; `fedlab.experiment.checks.resolve` raises the error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from fedlab.assembly import METHODS
from fedlab.config import Config, parse
from fedlab.config.walk import Visit, Walk
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.models import MODELS
from fedlab.registry import KINDS, Registry
from fedlab.server.strategies import STRATEGIES, strategy_settings

REGISTRIES: Mapping[str, Registry] = {kind.key: kind.registry for kind in KINDS}
"""The registry of each kind of component, by configuration key without the indices of lists."""

_INSIDE = {METHODS: MODELS}
"""Registry of a component → registry of the components in its settings, if that is another one."""


def settings_of(registry: Registry, name: str) -> type[BaseModel] | None:
    """Return the class that validates the settings of a component; None if there is no such component or class.

    Args:
        registry: the registry of the component's kind.
        name: name of the component.
    """
    try:
        found = registry.find(name)
    except ConfigError:
        return None
    if registry is STRATEGIES:
        return strategy_settings(found)
    settings = getattr(found, "Settings", None)
    return settings if isinstance(settings, type) and issubclass(settings, BaseModel) else None


_walk = partial(Walk[Registry], REGISTRIES, settings_of, _INSIDE)


def complete(config: Config) -> Config:
    """Return the configuration with the default of every component's setting that it leaves out."""
    changed = _walk(rewrite=_spelled_out).of(Config, config.model_dump(mode="json"))
    try:
        return parse(Config, changed)
    except ConfigErrors:  # a setting is called name, or has a value that YAML cannot express
        return config


def bare(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a raw configuration without the settings of components that have their defaults. `complete` adds them.

    In such a configuration a component can be replaced by changing its name. Otherwise, the defaults of the old
    component would remain and be unknown to the new one.
    """
    return _walk(rewrite=_without_defaults).of(Config, config)


def located(config: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    """Return a raw configuration with every path replaced.

    Args:
        config: the raw configuration.
        visit: called for each path with its kind, its text and its dotted key; returns the new text.
    """
    return _walk(visit=visit).of(Config, config)


def references(config: Config) -> Iterator[str]:
    """Yield every ``module:Class`` reference that names a component, each once."""
    found: list[str] = []
    _walk(names=found).of(Config, config.model_dump(mode="json"))
    yield from dict.fromkeys(name for name in found if ":" in name)


def _spelled_out(kind: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        made = kind.model_validate(settings)
        dumped = made.model_dump(mode="json", by_alias=True)
        # Settings that would be read back from a file with other values are left as the user wrote them.
        if "name" in dumped or kind.model_validate(dumped) != made:
            return settings
    except ValueError:  # of pydantic: settings that are not valid, or that JSON cannot hold
        return settings
    return {key: value for key, value in dumped.items() if key in settings or key not in _passed_on(kind)}


def _without_defaults(kind: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        made = kind.model_validate(settings)
    except ValidationError:
        return settings
    defaults = {
        field.alias or name
        for name, field in kind.model_fields.items()
        if not field.is_required() and getattr(made, name) == field.get_default(call_default_factory=True)
    }
    return {name: value for name, value in settings.items() if name not in defaults - _passed_on(kind)}


def _passed_on(kind: type[BaseModel]) -> frozenset[str]:
    """Arguments that a strategy's constructor passes on as ``**kwargs``, and for which it may have other defaults."""
    found: frozenset[str] = getattr(kind, "passed_on", frozenset())
    return found
