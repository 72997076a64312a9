"""`fedlab sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.arguments import EngineOption, KeepGoing, Metrics, Seeds, Sets, Workers, seeds_in, shorthands
from fedlab.cli.failures import FAILED, command_line


def sweep(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="METHOD|CONFIG|SWEEP",
            help="A method's name, a configuration file, or a sweep file with the keys base, grid, list and seeds.",
            show_default=False,
        ),
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V,…",
            help="Values of a key, e.g. training.lr=0.01,0.1 or federation.strategy=fedavg,scaffold. May be given "
            "several times; then all combinations are run.",
        ),
    ] = None,
    seeds: Seeds = "",
    sets: Sets = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for runs, tables and pictures.", show_default="runs/sweep-METHOD")
    ] = None,
    metric: Metrics = None,
    engine: EngineOption = None,
    workers: Workers = None,
    keep_going: KeepGoing = False,
) -> None:
    """Run a configuration with several settings and seeds, and tabulate mean ± standard deviation.

    The runs are made one after the other, and the remaining time is shown before each of them. To see the rounds of
    each run too, add --set tracking.console=plain. Finished runs in the folder are not repeated, and an interrupted run
    continues from its last checkpoint. So after an interruption, give the same command again.
    """
    from rich.console import Console

    from fedlab.report.grids import to_table
    from fedlab.report.values import plural
    from fedlab.studies.sweep import load_spec
    from fedlab.studies.sweep import sweep as run_sweep

    spec = load_spec(source, over or (), seeds_in(seeds))
    done = run_sweep(
        spec,
        folder or Path("runs") / f"sweep-{Path(source).stem}",
        metrics=tuple(dict.fromkeys(metric or ())),
        overrides=[*(sets or ()), *shorthands(engine__name=engine, engine__workers=workers)],
        quiet=True,
        keep_going=keep_going,
        command=command_line(ctx),
        announce=typer.echo,
    )
    Console().print(to_table("Mean ± sample standard deviation of n runs", done.table(), left=len(spec.axes)))
    for path in done.files.values():
        typer.echo(f"written: {path}")
    if done.batch.failures:
        typer.echo(f"{plural(len(done.batch.failures), 'run')} failed", err=True)
        raise typer.Exit(FAILED)
