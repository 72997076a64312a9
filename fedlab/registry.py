"""Names to classes: built-in components, entry points of other packages, and ``module:Class`` references."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from fedlab.errors import ConfigError, did_you_mean


class Registry:
    """Components of one kind, imported only when asked for.

    Args:
        kind: what the components are, in the singular (``method``); also the configuration key.
        builtin: name → ``module:attribute``.
        group: entry-point group other packages register under, e.g. ``fedlab.methods``.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str], group: str) -> None:
        self.kind, self.builtin, self.group = kind, dict(builtin), group

    def names(self) -> list[str]:
        """All names, built-in first, without importing anything."""
        return [*sorted(self.builtin), *sorted(set(self._entry_points()) - set(self.builtin))]

    def find(self, name: str, key: str | None = None) -> Any:
        """The component called `name`.

        Args:
            name: a built-in name, an entry-point name or ``module:attribute``.
            key: configuration key for the error message.

        Raises:
            ConfigError: unknown name, or a reference that does not import.
        """
        key = key or f"{self.kind}.name"
        if name in self.builtin:
            return _load(self.builtin[name], key)
        if ":" in name:
            return _load(name, key)
        points = self._entry_points()
        if name in points:
            return points[name].load()
        raise ConfigError(
            key,
            name,
            f"a {self.kind}: one of `fedlab list`, or module:Class",
            did_you_mean(name, [*self.builtin, *points]),
        )

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}


def _load(reference: str, key: str) -> Any:
    module_name, _, attribute = reference.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            key, reference, "an importable module:Class", f"{error}; is its folder on PYTHONPATH?"
        ) from error
    return value
