"""`fedlab run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.arguments import Address, EngineOption, Plain, Quiet, Sets, Source, Workers, shorthands
from fedlab.cli.failures import command_line
from fedlab.cli.runs import report_line


def run(
    ctx: typer.Context,
    source: Source,
    sets: Sets = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Short for --set seed=…")] = None,
    engine: EngineOption = None,
    workers: Workers = None,
    address: Address = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Short for --set federation.rounds=…")] = None,
    until: Annotated[
        int | None, typer.Option(min=1, help="Stop after this round; `fedlab resume` can continue from there.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder; short for --set tracking.name=…")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder in which the run folder is made; short for --set tracking.folder=…")
    ] = None,
    quiet: Quiet = False,
    plain: Plain = False,
) -> None:
    """Train a federation, either with a method's own configuration or with a configuration file."""
    from rich.console import Console

    from fedlab.experiment.start import run as run_experiment
    from fedlab.report.tables import result_table

    short = shorthands(
        quiet,
        plain,
        seed=seed,
        engine__name=engine,
        engine__workers=workers,
        engine__address=address,
        federation__rounds=rounds,
        tracking__name=name,
        tracking__folder=str(folder) if folder else None,
    )
    finished = run_experiment(source, overrides=[*(sets or ()), *short], until=until, command=command_line(ctx))
    Console().print(result_table(finished.history))
    typer.echo(report_line(finished))
