"""`fedlab run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.arguments import Address, EngineOption, OptionalSource, Plain, Quiet, Sets, Workers, shorthands
from fedlab.cli.failures import command_line
from fedlab.cli.flowerapp import AppClients, FlowerApp, RunConfig, app_of, no_flower_options, run_flower_app
from fedlab.cli.runs import report_line

if TYPE_CHECKING:
    from fedlab.experiment.result import Run
    from fedlab.flowerapp.start import FlowerAppRun


def run(
    ctx: typer.Context,
    source: OptionalSource = None,
    flower_app: FlowerApp = None,
    clients: AppClients = None,
    run_config: RunConfig = None,
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
    """Train a federation: with a method's own configuration, with a configuration file, or as a Flower app does it."""
    from rich.console import Console

    from fedlab.experiment.start import run as run_experiment
    from fedlab.report.tables import result_table

    app = app_of(source, flower_app)
    short = shorthands(
        quiet,
        plain,
        seed=seed,
        engine__name=engine,
        engine__workers=workers,
        engine__address=address,
        federation__rounds=rounds if app is None else None,
        tracking__name=name,
        tracking__folder=str(folder) if folder else None,
    )
    changes, command = [*(sets or ()), *short], command_line(ctx)
    finished: Run | FlowerAppRun
    if app is None:
        no_flower_options(clients, run_config)
        finished = run_experiment(str(source), overrides=changes, until=until, command=command)
    else:
        finished = run_flower_app(app, changes, clients, run_config or (), command, rounds=rounds, until=until)
    Console().print(result_table(finished.history))
    typer.echo(report_line(finished))
