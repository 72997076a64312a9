"""`fedlab reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.arguments import (
    EngineOption,
    KeepGoing,
    Plain,
    Quiet,
    Seeds,
    Source,
    Workers,
    parts,
    seeds_in,
    shorthands,
)
from fedlab.cli.failures import FAILED, command_line


def reproduce(
    ctx: typer.Context,
    source: Source,
    seeds: Seeds = "",
    arms: Annotated[
        str, typer.Option(metavar="ARM,ARM,…", help="Run these arms only; an arm is one variant of the experiment.")
    ] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Where runs and outcome go.", show_default="runs/reproduce-METHOD")
    ] = None,
    engine: EngineOption = None,
    workers: Workers = None,
    keep_going: KeepGoing = False,
    quiet: Quiet = False,
    plain: Plain = False,
) -> None:
    """Run a method's acceptance experiment and print seen against required.

    Runs that the folder holds finished are not repeated. Exit code 0 only if every gate is met.
    """
    from rich.console import Console

    from fedlab.report.grids import to_table
    from fedlab.reproduce import load_acceptance
    from fedlab.reproduce import reproduce as run_acceptance

    outcome = run_acceptance(
        load_acceptance(source),
        place := folder or Path("runs") / f"reproduce-{Path(source).stem}",
        seeds=seeds_in(seeds),
        arms=parts(arms),
        overrides=shorthands(quiet, plain, engine__name=engine, engine__workers=workers),
        keep_going=keep_going,
        command=command_line(ctx),
        announce=typer.echo,
    )
    console = Console()
    console.print(to_table("Runs", outcome.arm_rows(), left=2))
    console.print(to_table("Required and seen", outcome.gate_rows(), left=2))
    typer.echo(f"outcome: {place / 'acceptance.json'}, {place / 'acceptance.md'}")
    if not outcome.met:
        words = {verdict.word for verdict in outcome.verdicts}
        known = {"void": "void: the experiment says nothing", "missed": "missed"}
        typer.echo(next((known[w] for w in known if w in words), "not every gate could be judged"), err=True)
        raise typer.Exit(FAILED)
    typer.echo("every gate is met")
