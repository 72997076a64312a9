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

if TYPE_CHECKING:
    from fedlab.registry import Registry

Row = tuple[str, str, str]


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    DATASETS = "datasets"
    MODELS = "models"
    STRATEGIES = "strategies"
    ENGINES = "engines"
    PARTITIONS = "partitions"
    DRIFTS = "drifts"
    SAMPLERS = "samplers"
    COMPRESSORS = "compressors"
    PRIVACY = "privacy"


_ENGINES = {"inline": "fedlab.engine.inline", "ray": "fedlab.engine.raygrid", "flower": "fedlab.engine.stock"}


def list_components(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; everything where it is left out.")] = None,
) -> None:
    """List methods, datasets, models, strategies and other components, plug-ins included."""
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
    Kind.METHODS: "fedlab.job:METHODS",
    Kind.DATASETS: "fedlab.data.sources:SOURCES",
    Kind.MODELS: "fedlab.models:MODELS",
    Kind.STRATEGIES: "fedlab.server.strategies:STRATEGIES",
    Kind.PARTITIONS: "fedlab.data.partition:PARTITIONERS",
    Kind.DRIFTS: "fedlab.data.drift:DRIFTS",
    Kind.SAMPLERS: "fedlab.server.sampling:SAMPLERS",
    Kind.COMPRESSORS: "fedlab.compression:COMPRESSORS",
    Kind.PRIVACY: "fedlab.privacy:PRIVACY",
}


def _registry(kind: Kind) -> Registry:
    """A kind's registry, imported alone: strategies bring flwr, methods bring torch."""
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
