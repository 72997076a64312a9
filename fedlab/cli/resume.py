"""`fedlab resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlab.cli.arguments import Address, EngineOption, Plain, Quiet, Sets, TotalRounds, Workers, shorthands
from fedlab.cli.failures import command_line
from fedlab.cli.runs import RunPath, report_line


def resume(
    ctx: typer.Context,
    path: RunPath,
    rounds: TotalRounds = None,
    until: Annotated[
        int | None, typer.Option(min=1, help="Stop after this round; `fedlab resume` can continue from there.")
    ] = None,
    sets: Sets = None,
    engine: EngineOption = None,
    workers: Workers = None,
    address: Address = None,
    quiet: Quiet = False,
    plain: Plain = False,
) -> None:
    """Continue a run from its last complete checkpoint.

    The result is exactly that of a run that was never stopped. --set can only change keys below engine and tracking,
    because any other key would change the result.
    """
    from rich.console import Console

    from fedlab.experiment.start import resume as resume_experiment
    from fedlab.report.tables import result_table

    short = shorthands(quiet, plain, engine__name=engine, engine__workers=workers, engine__address=address)
    finished = resume_experiment(
        path, rounds=rounds, until=until, overrides=[*(sets or ()), *short], command=command_line(ctx)
    )
    Console().print(result_table(finished.history))
    typer.echo(report_line(finished))
