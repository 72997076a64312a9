"""`fedlab list`: what there is to choose from."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlab.errors import did_you_mean

if TYPE_CHECKING:
    from fedlab.registry import Registry

Row = tuple[str, str, str]


class Kind(StrEnum):
    """What can be listed, by the configuration's word in the plural."""

    METHODS = "methods"
    SOURCES = "sources"
    MODELS = "models"
    STRATEGIES = "strategies"
    ENGINES = "engines"
    PARTITIONS = "partitions"
    DRIFTS = "drifts"
    SAMPLERS = "samplers"
    COMPRESSIONS = "compressions"
    PRIVACY = "privacy"


# further names for the same kinds, as the components are called in code and in other libraries
_OTHERWISE = {
    "datasets": Kind.SOURCES,
    "partitioners": Kind.PARTITIONS,
    "steps": Kind.PARTITIONS,
    "compressors": Kind.COMPRESSIONS,
    "privacies": Kind.PRIVACY,
}
_ENGINES = {"inline": "fedlab.engine.grids.inline", "ray": "fedlab.engine.grids.ray", "flower": "fedlab.engine.flower"}


def kind_of(word: str) -> Kind:
    """The kind that a word names: a plural or singular, a key of the configuration, or another name of the kind.

    Raises:
        typer.BadParameter: no such kind.
    """
    plurals = {**{kind.value: kind for kind in Kind}, **_OTHERWISE}
    words = {**plurals, **{_singular(plural): kind for plural, kind in plurals.items()}}
    try:
        return words[word.lower().rpartition(".")[2]]
    except KeyError:
        raise typer.BadParameter(f"{word!r} is not one of {', '.join(Kind)}. {did_you_mean(word, words)}") from None


def _singular(plural: str) -> str:
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    return plural.removesuffix("s")


def list_components(
    kind: Annotated[
        Kind | None,
        typer.Argument(
            parser=kind_of,
            metavar="KIND",
            autocompletion=lambda incomplete: [kind.value for kind in Kind if kind.startswith(incomplete)],
            help=f"One of {', '.join(Kind)}, or its key in a configuration, e.g. data.source. Without it, all kinds "
            "are listed.",
        ),
    ] = None,
) -> None:
    """List the methods, data sources, models, strategies and other components that are installed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for chosen in [kind] if kind else list(Kind):
        table = Table("name", "what it is", "from", title=chosen.value, title_justify="left", title_style="bold")
        for row in rows(chosen):
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        console.print(table)


def rows(kind: Kind) -> Iterator[Row]:
    """(name, what it is, where it comes from) of every component of a kind."""
    if kind is Kind.ENGINES:
        yield from ((name, _module_line(module), "built-in") for name, module in _ENGINES.items())
        return
    registry = _registry(kind)
    for name in registry.names():
        yield name, _about(registry, name), registry.origin(name)


_REGISTRIES = {
    Kind.METHODS: "fedlab.assembly:METHODS",
    Kind.SOURCES: "fedlab.data.sources:SOURCES",
    Kind.MODELS: "fedlab.models:MODELS",
    Kind.STRATEGIES: "fedlab.server.strategies:STRATEGIES",
    Kind.PARTITIONS: "fedlab.data.partition.partition:PARTITIONERS",
    Kind.DRIFTS: "fedlab.data.partition.drift:DRIFTS",
    Kind.SAMPLERS: "fedlab.server.participation.samplers:SAMPLERS",
    Kind.COMPRESSIONS: "fedlab.protocol.compression:COMPRESSORS",
    Kind.PRIVACY: "fedlab.privacy:PRIVACY",
}


def _registry(kind: Kind) -> Registry:
    """The registry of a kind. Only its module is imported: strategies import flwr, and methods import torch."""
    module, _, name = _REGISTRIES[kind].partition(":")
    registry: Registry = getattr(importlib.import_module(module), name)
    return registry


def _about(registry: Registry, name: str) -> str:
    try:
        found: Any = registry.find(name)
    except Exception as error:  # one broken plug-in must not hide the others
        return f"cannot be imported: {' '.join(str(error).split())}"
    line = (inspect.getdoc(found) or "").partition("\n")[0]
    if registry.kind != "method":
        return line
    return " · ".join(text for text in (getattr(found, "paper", ""), getattr(found, "modality", ""), line) if text)


def _module_line(module: str) -> str:
    """First line of a module's docstring, read from its source: importing an engine would import ray."""
    spec = importlib.util.find_spec(module)
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
