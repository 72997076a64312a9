"""The components of a configuration: whose settings they take, which of these are defaults, and which are paths.

A component that is unknown or wrong is left as it is; `fedlab.experiment.checks.check_config` says what is wrong.
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
"""By the key of a configuration."""

_INSIDE = {METHODS: MODELS}
"""What the components in the settings of others are, where that is not the same kind."""

Visit = Callable[[PathKind, str, str], str]
Rewrite = Callable[[type[BaseModel], dict[str, Any]], dict[str, Any]]


def settings_of(registry: Registry, name: str) -> type[BaseModel] | None:
    """The class that validates the settings of a component; None where there is no such component.

    Args:
        registry: of its kind.
        name: of the component.
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
    """The configuration with every setting of every component spelled out."""
    changed = _Components(rewrite=_spelled_out).of(config.model_dump(mode="json"))
    try:
        return parse(Config, changed)
    except ConfigErrors:  # a setting that is called name, or one that no YAML file holds
        return config


def bare(config: Mapping[str, Any]) -> dict[str, Any]:
    """A raw configuration without those settings of components that are defaults: what `complete` adds again.

    Only so can a component be exchanged by its name alone, as the settings of one are no settings of another.
    """
    return _Components(rewrite=_without_defaults).of(config)


def located(config: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    """A raw configuration whose paths have been replaced.

    Args:
        config: it.
        visit: given what kind of path it is, the text and its dotted key; returns the new text.
    """
    return _Components(visit=visit).of(config)


def references(config: Config) -> Iterator[str]:
    """Every ``module:Class`` that names a component."""
    found: list[str] = []
    _Components(names=found).of(config.model_dump(mode="json"))
    yield from dict.fromkeys(name for name in found if ":" in name)


class _Components:
    """A walk over a raw configuration, along the classes that will validate it."""

    def __init__(
        self, visit: Visit | None = None, rewrite: Rewrite | None = None, names: list[str] | None = None
    ) -> None:
        self._visit, self._rewrite, self._names = visit, rewrite, names

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return self._section(Config, config, "", "", None)

    def _section(
        self, kind: type[BaseModel], raw: Mapping[str, Any], key: str, place: str, registry: Registry | None
    ) -> dict[str, Any]:
        """A mapping that `kind` validates.

        Args:
            kind: the class.
            raw: the mapping.
            key: dotted key with the indices of lists.
            place: the same without them; empty inside a component.
            registry: of the component that this is inside of.
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
        # what does not survive the way through a file had better stay as the user wrote it
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
    """Arguments whose defaults a strategy's constructor may choose itself."""
    found: frozenset[str] = getattr(kind, "passed_on", frozenset())
    return found


def place_of(kind: PathKind, text: str, folder: Path) -> str:
    """The absolute place a text names where a configuration lies in `folder`; outputs start from the current one."""
    return kind.absolute(text, Path.cwd() if kind.kind == "output" else folder)
