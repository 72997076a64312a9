"""`fedlab reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.arguments import EngineOption, Plain, Quiet, Source, Workers, shorthands
from fedlab.cli.failures import FAILED, command_line
from fedlab.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


def reproduce(
    ctx: typer.Context,
    source: Source,
    seeds: Annotated[str, typer.Option(metavar="N,N,…", help="Instead of the specification's seeds.")] = "",
    arms: Annotated[str, typer.Option(metavar="ARM,ARM,…", help="Only these arms.")] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Where runs and outcome go.", show_default="runs/reproduce-METHOD")
    ] = None,
    engine: EngineOption = None,
    workers: Workers = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on after a run that failed.")] = False,
    quiet: Quiet = False,
    plain: Plain = False,
) -> None:
    """Run a method's acceptance experiment and print seen against required.

    Runs that the folder holds finished are not repeated. Exit code 0 only if every gate is met.
    """
    from rich.console import Console

    from fedlab.reproduce import load_acceptance
    from fedlab.reproduce import reproduce as run_acceptance

    outcome = run_acceptance(
        load_acceptance(source),
        place := folder or Path("runs") / f"reproduce-{Path(source).stem}",
        seeds=[_seed(text) for text in _parts(seeds)],
        arms=_parts(arms),
        overrides=shorthands(quiet, plain, engine__name=engine, engine__workers=workers),
        keep_going=keep_going,
        command=command_line(ctx),
        announce=typer.echo,
    )
    console = Console()
    console.print(_table("Runs, in per cent", outcome.arm_rows()))
    console.print(_table("Required and seen", outcome.gate_rows()))
    typer.echo(f"outcome: {place / 'acceptance.json'}, {place / 'acceptance.md'}")
    if not outcome.met:
        words = {verdict.word for verdict in outcome.verdicts}
        typer.echo("missed" if "missed" in words else "not every gate could be judged", err=True)
        raise typer.Exit(FAILED)
    typer.echo("every gate is met")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError("--seeds", text, "whole numbers from 0, separated by commas", "e.g. --seeds 0,1,2")
    return int(text)


def _table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for position, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if position < 2 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    return table
