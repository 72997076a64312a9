"""Walks through a raw configuration along the classes that will validate it, and changes components and paths in it."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel

from fedlab.config.base import Component
from fedlab.storage.paths import PathKind

R = TypeVar("R")
Visit = Callable[[PathKind, str, str], str]
Rewrite = Callable[[type[BaseModel], dict[str, Any]], dict[str, Any]]


class Walk(Generic[R]):
    """A walk through raw sections, which knows the components that may occur in them.

    Args:
        registries: the registry of each kind of component, by configuration key without the indices of lists.
        settings_of: returns the class that validates the settings of a component, given its registry and its name;
            None if there is no such component.
        inside: registry of a component → registry of the components in its settings, if that is another one.
        visit: called for each path with its kind, its text and its dotted key; returns the new text. None leaves paths
            as they are.
        rewrite: called with the class of a component's settings and the settings; returns the new settings.
        names: a list to which the name of every component is appended.
    """

    def __init__(
        self,
        registries: Mapping[str, R],
        settings_of: Callable[[R, str], type[BaseModel] | None],
        inside: Mapping[R, R] | None = None,
        *,
        visit: Visit | None = None,
        rewrite: Rewrite | None = None,
        names: list[str] | None = None,
    ) -> None:
        self._registries, self._settings_of, self._inside = registries, settings_of, inside or {}
        self._visit, self._rewrite, self._names = visit, rewrite, names

    def of(self, section: type[BaseModel], raw: Mapping[str, Any]) -> dict[str, Any]:
        """The changed copy of a raw section.

        Args:
            section: the class that validates it.
            raw: the section.
        """
        return self._section(section, raw, "", "", None)

    def _section(
        self, kind: type[BaseModel], raw: Mapping[str, Any], key: str, place: str, registry: R | None
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
                inner = registry or self._registries.get(f"{place}{written}")
                changed[written] = self._value(hint, raw[written], f"{key}{written}", f"{place}{written}.", inner)
        return changed

    def _value(self, hint: Any, value: Any, key: str, place: str, registry: R | None) -> Any:
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

    def _component(self, value: Any, key: str, registry: R | None) -> Any:
        raw = {"name": value} if isinstance(value, str) else value
        if not (isinstance(raw, Mapping) and isinstance(raw.get("name"), str)) or registry is None:
            return value
        name = raw["name"]
        if self._names is not None:
            self._names.append(name)
        kind = self._settings_of(registry, name)
        if kind is None:
            return value
        settings = {k: v for k, v in raw.items() if k != "name"}
        if self._rewrite is not None:
            settings = self._rewrite(kind, settings)
        return {"name": name, **self._section(kind, settings, f"{key}.", "", self._inside.get(registry, registry))}


def place_of(kind: PathKind, text: str, folder: Path) -> str:
    """Make a path in a configuration absolute. Addresses and names on a hub are returned as they are.

    Args:
        kind: the kind of path.
        text: the path.
        folder: the folder that a relative path starts from; paths of outputs start from the current folder instead.
    """
    return kind.absolute(text, Path.cwd() if kind.kind == "output" else folder)


def within(key: str, given: Iterable[str]) -> bool:
    """Whether a dotted key is one of the given keys, or a key below one of them."""
    return any(key == other or key.startswith(f"{other}.") for other in given)
