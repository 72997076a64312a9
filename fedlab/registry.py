"""Names to classes: built-in components, entry points of other packages, and ``module:Class`` references."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fedlab.config import Component


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
            return _load(points[name].value, key)
        raise ConfigError(
            key,
            name,
            f"a {self.kind}: one of `fedlab list`, or module:Class",
            did_you_mean(name, [*self.builtin, *points]),
        )

    def configured(self, component: Component, key: str) -> tuple[Any, Any]:
        """The class a component names and its settings, validated by the class's own ``Settings``.

        Args:
            component: name and settings.
            key: configuration key of the component.

        Raises:
            ConfigError: no such component, or not a class with settings.
            ConfigErrors: wrong settings.
        """
        from fedlab.config import Section, parse

        found = self.find(component.name, f"{key}.name")
        settings = getattr(found, "Settings", None)
        if not (isinstance(found, type) and isinstance(settings, type) and issubclass(settings, Section)):
            raise ConfigError(
                f"{key}.name",
                component.name,
                f"a {self.kind} class with a nested class Settings(fedlab.config.Section)",
            )
        return found, parse(settings, component.settings, key)

    def origin(self, name: str) -> str:
        """Where the component called `name` comes from: built in, or the distribution that registers it."""
        if name in self.builtin:
            return "built-in"
        point = self._entry_points()[name]
        return f"entry point of {point.dist.name}" if point.dist else "entry point"

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}


_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.(\w+|<locals>))*")


def _load(reference: str, key: str) -> Any:
    from fedlab.config.modules import load_reference

    if not _REFERENCE.fullmatch(reference):
        raise ConfigError(key, reference, "module:Class, both dotted names", "e.g. mypackage.mymodule:MyClass")
    return load_reference(reference, key)


@dataclass(frozen=True)
class ComponentKind:
    """A kind of component that a configuration can name.

    Args:
        plural: what `fedlab list` calls it.
        key: of the configuration.
        place: ``module:NAME`` of its `Registry`.
        aliases: further plurals, as the components are called in code and in other libraries.
    """

    plural: str
    key: str
    place: str
    aliases: tuple[str, ...] = ()

    @property
    def registry(self) -> Registry:
        """Its registry. Only that module is imported: strategies import flwr, and methods import torch."""
        module, _, name = self.place.partition(":")
        found: Registry = getattr(importlib.import_module(module), name)
        return found


KINDS = (
    ComponentKind("methods", "method", "fedlab.assembly:METHODS"),
    ComponentKind("sources", "data.source", "fedlab.data.sources:SOURCES", ("datasets",)),
    ComponentKind("models", "model", "fedlab.models:MODELS"),
    ComponentKind("strategies", "federation.strategy", "fedlab.server.strategies:STRATEGIES"),
    ComponentKind(
        "partitions", "data.partition", "fedlab.data.partition.partition:PARTITIONERS", ("partitioners", "steps")
    ),
    ComponentKind("drifts", "data.drift", "fedlab.data.partition.drift:DRIFTS"),
    ComponentKind("samplers", "federation.sampler", "fedlab.server.participation.samplers:SAMPLERS"),
    ComponentKind("compressions", "exchange.compression", "fedlab.protocol.compression:COMPRESSORS", ("compressors",)),
    ComponentKind("privacy", "privacy", "fedlab.privacy:PRIVACY", ("privacies",)),
)
"""All kinds, in the order in which they are listed. Whoever adds one declares it here and nowhere else."""
