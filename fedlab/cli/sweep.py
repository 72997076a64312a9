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
            help="A method's name, a configuration file, or a sweep file with base, grid, list and seeds.",
            show_default=False,
        ),
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V,…",
            help="Vary a key, e.g. training.lr=0.01,0.1 or 'federation.strategy=fedavg,{name: fedprox, mu: 0.1}'; "
            "repeated: all combinations.",
        ),
    ] = None,
    seeds: Seeds = "",
    sets: Sets = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where runs, tables and pictures go.", show_default="runs/sweep-METHOD")
    ] = None,
    metric: Metrics = None,
    engine: EngineOption = None,
    workers: Workers = None,
    keep_going: KeepGoing = False,
) -> None:
    """Run a configuration with several settings and seeds and tabulate mean ± standard deviation.

    One run after the other, each with the time left (--set tracking.console=auto shows the rounds too). Runs that the
    folder holds finished are not repeated, one that was broken off goes on from its last checkpoint: after an
    interruption the same command goes on.
    """
    from rich.console import Console

    from fedlab.report.grids import to_table
    from fedlab.report.values import plural
    from fedlab.sweep import load_spec
    from fedlab.sweep import sweep as run_sweep

    spec = load_spec(source, over or (), seeds_in(seeds))
    done = run_sweep(
        spec,
        folder or Path("runs") / f"sweep-{Path(source).stem}",
        metrics=tuple(dict.fromkeys(metric or ("accuracy",))),
        overrides=[
            "tracking.console=quiet",
            *(sets or ()),
            *shorthands(engine__name=engine, engine__workers=workers),
        ],
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
