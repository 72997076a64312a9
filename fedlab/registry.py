"""Finds components by name: built-in ones, entry points of other packages, and ``module:Class`` references."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedlab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fedlab.config import Component

GIVEN = "given"
"""Name in a configuration of what was an object in Python and cannot be made again from its settings."""


class Registry:
    """Components of one kind, by name. A component is imported only when it is asked for.

    Args:
        kind: the kind as a singular noun, such as ``method``. Error messages use it, and so does the default
            configuration key of `find`.
        builtin: ``module:attribute`` of each built-in component, by name.
        group: the entry-point group in which other packages register their components, such as ``fedlab.methods``.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str], group: str) -> None:
        self.kind, self.builtin, self.group = kind, dict(builtin), group

    def names(self) -> list[str]:
        """All names, those of built-in components first. Nothing is imported for this."""
        return [*sorted(self.builtin), *sorted(set(self._entry_points()) - set(self.builtin))]

    def find(self, name: str, key: str | None = None) -> Any:
        """Import the component called `name`, and return it.

        Args:
            name: a built-in name, the name of an entry point, or ``module:attribute``.
            key: configuration key for the error message; default: the kind, followed by ``.name``.

        Raises:
            ConfigError: the name is unknown, or what it refers to cannot be imported or may not be imported here; see
                `fedlab.config.modules.only`.
        """
        key = key or f"{self.kind}.name"
        if name in self.builtin:
            return _load(self.builtin[name], key)
        points = self._entry_points()
        if ":" in name:
            return _load(name, key, {*self.builtin.values(), *(point.value for point in points.values())})
        if name in points:
            return _load(points[name].value, key)
        raise ConfigError(
            key,
            name,
            f"a {self.kind}: one of `fedlab list`, or module:Class",
            did_you_mean(name, [*self.builtin, *points]),
        )

    def configured(self, component: Component, key: str) -> tuple[Any, Any]:
        """Return the class that a component names, and its settings, validated by the class's own ``Settings``.

        Args:
            component: name and settings.
            key: configuration key of the component.

        Raises:
            ConfigError: there is no such component, or it is not a class with a nested class ``Settings``.
            ConfigErrors: settings are unknown or have wrong values.
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
        """Say where the component called `name` comes from: FedLab itself, or the package that registers it.

        Raises:
            KeyError: the component is neither built in nor an entry point.
        """
        if name in self.builtin:
            return "built-in"
        point = self._entry_points()[name]
        return f"entry point of {point.dist.name}" if point.dist else "entry point"

    def _entry_points(self) -> Mapping[str, importlib.metadata.EntryPoint]:
        return _entry_points(self.group, tuple(sys.path))


@lru_cache(maxsize=64)
def _entry_points(group: str, path: tuple[str, ...]) -> Mapping[str, importlib.metadata.EntryPoint]:
    """Return the entry points of a group. Every installed package has to be opened for that, so it is done once.

    Args:
        group: the entry-point group.
        path: ``sys.path``, since another one finds other packages.
    """
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.(\w+|<locals>))*")


def _load(reference: str, key: str, known: Collection[str] | None = None) -> Any:
    """Import what a reference names; one that a user has written, and that is not among the known ones, if allowed."""
    from fedlab.config.modules import check_allowed, load_reference

    if not _REFERENCE.fullmatch(reference):
        raise ConfigError(key, reference, "module:Class, both dotted names", "e.g. mypackage.mymodule:MyClass")
    if known is not None and reference not in known:
        check_allowed(reference, key)
    return load_reference(reference, key)


@dataclass(frozen=True)
class ComponentKind:
    """A kind of component that a configuration can name.

    Args:
        plural: the plural noun by which `fedlab list` knows the kind.
        key: the configuration key that names such components.
        place: ``module:NAME`` of the `Registry` of the kind.
        aliases: other plural nouns that mean the same kind in code and in other libraries.
    """

    plural: str
    key: str
    place: str
    aliases: tuple[str, ...] = ()

    @property
    def registry(self) -> Registry:
        """The registry of this kind. It is imported only here, because strategies import flwr and methods torch."""
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
    ComponentKind("augmentations", "data.augment", "fedlab.data.augment:AUGMENTATIONS", ("augments",)),
    ComponentKind("samplers", "federation.sampler", "fedlab.server.participation.samplers:SAMPLERS"),
    ComponentKind("compressions", "exchange.compression", "fedlab.protocol.compression:COMPRESSORS", ("compressors",)),
    ComponentKind("probes", "probes", "fedlab.probes:PROBES"),
    ComponentKind("privacy", "privacy", "fedlab.privacy:PRIVACY", ("privacies",)),
    ComponentKind("callbacks", "callbacks", "fedlab.callbacks:CALLBACKS"),
    ComponentKind("trackers", "tracking.trackers", "fedlab.tracking.trackers:TRACKERS"),
)
"""All kinds, in the order in which they are listed. A new kind has to be added here and nowhere else."""
