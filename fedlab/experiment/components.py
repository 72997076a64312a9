"""Finds the components in a configuration, adds or removes their default settings, and replaces paths in them.

A component that is unknown or has wrong settings is left as it is; `fedlab.experiment.checks.resolve` raises the error.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from fedlab.assembly import METHODS
from fedlab.config import Component, Config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.models import MODELS
from fedlab.registry import KINDS, Registry
from fedlab.server.strategies import STRATEGIES, strategy_settings
from fedlab.storage.paths import PathKind

REGISTRIES: Mapping[str, Registry] = {kind.key: kind.registry for kind in KINDS}
"""The registry of each kind of component, by configuration key without the indices of lists."""

_INSIDE = {METHODS: MODELS}
"""Registry of a component → registry of the components in its settings, if that is another one."""

Visit = Callable[[PathKind, str, str], str]
Rewrite = Callable[[type[BaseModel], dict[str, Any]], dict[str, Any]]


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


def complete(config: Config) -> Config:
    """Return the configuration with the default of every component's setting that it leaves out."""
    changed = _Components(rewrite=_spelled_out).of(config.model_dump(mode="json"))
    try:
        return parse(Config, changed)
    except ConfigErrors:  # a setting is called name, or has a value that YAML cannot express
        return config


def bare(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a raw configuration without the settings of components that have their defaults. `complete` adds them.

    In such a configuration a component can be replaced by changing its name. Otherwise, the defaults of the old
    component would remain and be unknown to the new one.
    """
    return _Components(rewrite=_without_defaults).of(config)


def located(config: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    """Return a raw configuration with every path replaced.

    Args:
        config: the raw configuration.
        visit: called for each path with its kind, its text and its dotted key; returns the new text.
    """
    return _Components(visit=visit).of(config)


def references(config: Config) -> Iterator[str]:
    """Yield every ``module:Class`` reference that names a component, each once."""
    found: list[str] = []
    _Components(names=found).of(config.model_dump(mode="json"))
    yield from dict.fromkeys(name for name in found if ":" in name)


class _Components:
    """Walks through a raw configuration along the classes that will validate it, and changes it on the way.

    Args:
        visit: replaces a path, as in `located`; None leaves paths as they are.
        rewrite: called with the class of a component's settings and the settings; returns the new settings.
        names: a list to which the name of every component is appended.
    """

    def __init__(
        self, visit: Visit | None = None, rewrite: Rewrite | None = None, names: list[str] | None = None
    ) -> None:
        self._visit, self._rewrite, self._names = visit, rewrite, names

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return self._section(Config, config, "", "", None)

    def _section(
        self, kind: type[BaseModel], raw: Mapping[str, Any], key: str, place: str, registry: Registry | None
    ) -> dict[str, Any]:
        """Change one mapping of the configuration.

        Args:
            kind: the class that validates the mapping.
            raw: the mapping.
            key: dotted key of the mapping, with the indices of lists.
            place: the same without the indices; empty inside a component.
            registry: registry of the components in this mapping; None outside of components, where the key decides.
        """
        changed = dict(raw)
        for name, field in kind.model_fields.items():
            written = field.alias or name
            if written in raw:
                hint = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
                inner = registry or REGISTRIES.get(f"{place}{written}")
                changed[written] = self._value(hint, raw[written], f"{key}{written}", f"{place}{written}.", inner)
        return changed

    def _value(self, hint: Any, value: Any, key: str, place: str, registry: Registry | None) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            mark = next((mark for mark in arguments[1:] if isinstance(mark, PathKind)), None)
            if mark is not None and isinstance(value, str):
                return self._visit(mark, value, key) if self._visit else value
            return self._value(arguments[0], value, key, place, registry)
        if origin in (typing.Union, UnionType):
            for choice in arguments:
                value = self._value(choice, value, key, place, registry)
            return value
        if origin is dict and isinstance(value, Mapping):
            return {k: self._value(arguments[1], v, f"{key}.{k}", place, registry) for k, v in value.items()}
        if origin in (list, tuple) and isinstance(value, list | tuple) and arguments:
            hints = arguments if len(arguments) == len(value) and Ellipsis not in arguments else None
            return [
                self._value(hints[i] if hints else arguments[0], item, f"{key}.{i}", place, registry)
                for i, item in enumerate(value)
            ]
        if isinstance(hint, type) and issubclass(hint, Component):
            return self._component(value, key, registry)
        if isinstance(hint, type) and issubclass(hint, BaseModel) and isinstance(value, Mapping):
            return self._section(hint, value, f"{key}.", place, registry)
        return value

    def _component(self, value: Any, key: str, registry: Registry | None) -> Any:
        raw = {"name": value} if isinstance(value, str) else value
        if not (isinstance(raw, Mapping) and isinstance(raw.get("name"), str)) or registry is None:
            return value
        name = raw["name"]
        if self._names is not None:
            self._names.append(name)
        kind = settings_of(registry, name)
        if kind is None:
            return value
        settings = {k: v for k, v in raw.items() if k != "name"}
        if self._rewrite is not None:
            settings = self._rewrite(kind, settings)
        return {"name": name, **self._section(kind, settings, f"{key}.", "", _INSIDE.get(registry, registry))}


def _spelled_out(kind: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        made = kind.model_validate(settings)
        dumped = made.model_dump(mode="json", by_alias=True)
        # Settings that would be read back from a file with other values are left as the user wrote them.
        if "name" in dumped or kind.model_validate(dumped) != made:
            return settings
    except (ValidationError, PydanticSerializationError):
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


def place_of(kind: PathKind, text: str, folder: Path) -> str:
    """Make a path in a configuration absolute. Addresses and names on a hub are returned as they are.

    Args:
        kind: the kind of path.
        text: the path.
        folder: the folder that a relative path starts from; paths of outputs start from the current folder instead.
    """
    return kind.absolute(text, Path.cwd() if kind.kind == "output" else folder)
