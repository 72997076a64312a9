"""Changes to a configuration, as they are given: ``dotted.key=value`` strings, or a mapping in Python."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedlab.config.base import Component
from fedlab.config.yamltree import load_yaml
from fedlab.errors import ConfigError, ConfigErrors

Change = tuple[str, Any]
"""A dotted key, and the value that it is given."""
Overrides = Sequence[str | Change] | Mapping[str, Any]
"""``["training.lr=0.1"]``, ``{"training.lr": 0.1}`` or ``{"training": {"lr": 0.1}}``; or what `changes` returns."""
_EXAMPLES = 'overrides={"training.lr": 0.1}, overrides={"training": {"lr": 0.1}} or overrides=["training.lr=0.1"]'


def changes(overrides: Overrides, root: type[BaseModel]) -> list[Change]:
    """The changes as dotted keys with values, in the order in which they are to be made.

    The value in a string is read as YAML. In a mapping, values are taken as they are: a mapping for a section changes
    the keys that it names, and so does a mapping without ``name`` for a component; any other value replaces what was
    there.

    Args:
        overrides: see `Overrides`.
        root: the class that validates the whole configuration.

    Raises:
        ConfigErrors: something else than strings or a mapping, a string without a key, or a value that YAML cannot
            express.
    """
    if isinstance(overrides, Mapping):
        return list(_of_mapping(overrides, root, ""))
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise ConfigErrors([ConfigError("overrides", overrides, "a mapping, or a list of strings", _EXAMPLES)])
    return [override if isinstance(override, tuple) else _of_text(override) for override in overrides]


def _of_text(override: object) -> Change:
    if not isinstance(override, str):
        raise ConfigErrors([ConfigError("overrides", override, "strings of the form dotted.key=value", _EXAMPLES)])
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigErrors([ConfigError("--set", override, "dotted.key=value", "e.g. --set training.lr=0.1")])
    try:
        return key.strip(), load_yaml(text)
    except ValueError:  # Windows paths, patterns: text that only looks like YAML
        return key.strip(), text


def _of_mapping(values: Mapping[Any, Any], kind: type[BaseModel] | None, prefix: str) -> Iterator[Change]:
    """Changes below a key.

    Args:
        values: what is to be changed below the key.
        kind: the class that validates what is below the key; None where a component's own class does.
        prefix: the key, with a dot at its end.
    """
    for name, value in values.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str) or not name.strip():
            raise ConfigErrors([ConfigError("overrides", name, "keys of the configuration, as text", _EXAMPLES)])
        section = kind and _section(kind, name)
        if (
            isinstance(value, Mapping)
            and value
            and section
            and not (issubclass(section, Component) and "name" in value)
        ):
            yield from _of_mapping(value, None if issubclass(section, Component) else section, f"{key}.")
        else:
            yield key, plain(value, key)


def _section(kind: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The class that validates what a dotted key of a section holds; None if it holds no section and no component."""
    found: type[BaseModel] | None = kind
    for name in key.split("."):
        if found is None or issubclass(found, Component) or name not in found.model_fields:
            return None
        found = _class_in(found.model_fields[name].annotation)
    return found


def _class_in(hint: Any) -> type[BaseModel] | None:
    """The class of a section in a type that may be optional or annotated; None for lists and single values."""
    if isinstance(hint, type):
        return hint if issubclass(hint, BaseModel) else None
    if typing.get_origin(hint) in (list, tuple, dict):
        return None
    return next((found for inner in typing.get_args(hint) if (found := _class_in(inner)) is not None), None)


def plain(value: Any, key: str) -> Any:
    """A value in Python as YAML can express it.

    Args:
        value: text, a number, a truth value, None, a path, a section or component, an array, or a list or mapping of
            these.
        key: dotted key of the value, for the error.

    Raises:
        ConfigErrors: it holds an object of another type.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # arrays and single numbers of NumPy and torch
        return plain(value.tolist(), key)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): plain(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{key}.{index}") for index, inner in enumerate(value)]
    expected = "text, a number, a truth value, None, or a list or mapping of these"
    raise ConfigErrors([ConfigError(key, value, expected, "objects are arguments of fedlab.run, such as model=…")])
