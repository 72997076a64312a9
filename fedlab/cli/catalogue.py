"""`fedlab list`: what there is to choose from."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fedlab.errors import did_you_mean
from fedlab.registry import KINDS, Registry

Row = tuple[str, str, str]


_ENGINES = {"inline": "fedlab.engine.grids.inline", "ray": "fedlab.engine.grids.ray", "flower": "fedlab.engine.flower"}
_LISTED = {kind.plural: kind for kind in KINDS}
WORDS = (*_LISTED, "engines")
"""What can be listed: the kinds of components, and the engines, which are no components."""


def kind_of(word: str) -> str:
    """The kind that a word names: a plural or singular, a key of the configuration, or another name of the kind.

    Raises:
        typer.BadParameter: no such kind.
    """
    plurals = {word: word for word in WORDS} | {alias: kind.plural for kind in KINDS for alias in kind.aliases}
    words = {**plurals, **{_singular(plural): kind for plural, kind in plurals.items()}}
    try:
        return words[word.lower().rpartition(".")[2]]
    except KeyError:
        raise typer.BadParameter(f"{word!r} is not one of {', '.join(WORDS)}. {did_you_mean(word, words)}") from None


def _singular(plural: str) -> str:
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    return plural.removesuffix("s")


def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(
            parser=kind_of,
            metavar="KIND",
            autocompletion=lambda incomplete: [word for word in WORDS if word.startswith(incomplete)],
            help=f"One of {', '.join(WORDS)}, or its key in a configuration, e.g. data.source. Without it, all kinds "
            "are listed.",
        ),
    ] = None,
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="Print Markdown tables of FedLab's methods instead: what they are, the outcomes of their experiments, "
            "what they exchange and cost, and the rehearsals of their configurations of paper size.",
        ),
    ] = False,
) -> None:
    """List the methods, data sources, models, strategies and other components that are installed."""
    if table:
        if kind not in (None, "methods"):
            raise typer.BadParameter(f"--table shows methods only, not {kind}")
        _print_tables()
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for chosen in [kind] if kind else WORDS:
        shown = Table("name", "what it is", "from", title=chosen, title_justify="left", title_style="bold")
        for row in rows(chosen):
            shown.add_row(*(Text(cell, overflow="fold") for cell in row))
        console.print(shown)


def _print_tables() -> None:
    from fedlab.report.grids import to_markdown
    from fedlab.studies import recorded, rehearsed

    tables = (
        recorded.methods_table(),
        recorded.outcomes_table(),
        rehearsed.comparison_table(),
        rehearsed.rehearsals_table(),
    )
    typer.echo("\n\n".join("\n".join(to_markdown(rows)) for rows in tables))
    for name in recorded.stale():
        typer.echo(f"the code of {name} has changed since its outcome was recorded", err=True)
    for name in rehearsed.stale():
        typer.echo(f"{name} has changed since it was rehearsed", err=True)


def rows(kind: str) -> Iterator[Row]:
    """(name, what it is, where it comes from) of every component of a kind."""
    if kind == "engines":
        yield from ((name, _module_line(module), "built-in") for name, module in _ENGINES.items())
        return
    registry = _LISTED[kind].registry
    for name in registry.names():
        yield name, _about(registry, name), registry.origin(name)


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
