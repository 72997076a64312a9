"""`fedlab sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlab.cli.arguments import EngineOption, KeepGoing, Metrics, Seeds, Sets, Workers, seeds_in, shorthands
from fedlab.cli.failures import FAILED, command_line

if TYPE_CHECKING:
    from fedlab.studies.spec import SweepSpec


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
            help="Values of a key, e.g. training.lr=0.01,0.1 or federation.strategy=fedavg,scaffold; with --optuna "
            "also a range: float(0,1), log(1e-4,1e-1), int(1,5) or logint(8,256). May be given several times; then all "
            "combinations are run.",
        ),
    ] = None,
    seeds: Seeds = "",
    optuna: Annotated[
        int | None,
        typer.Option(
            "--optuna",
            metavar="N",
            min=1,
            help="Let Optuna choose N combinations, instead of running all. It compares them on the clients' "
            "validation samples (data.validation).",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC", help="Metric that --optuna improves on validation samples.", show_default="accuracy"
        ),
    ] = None,
    sets: Sets = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for runs, tables and pictures.", show_default="runs/sweep-METHOD")
    ] = None,
    metric: Metrics = None,
    engine: EngineOption = None,
    workers: Workers = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Number of runs to make at the same time, each in a process of its own; the results are the same.",
            show_default="as many as cores and memory have room for, after the first run has shown what one needs; 1 "
            "for runs that use Ray or a GPU",
        ),
    ] = None,
    keep_going: KeepGoing = False,
) -> None:
    """Run a configuration with several settings and seeds, and tabulate mean ± standard deviation.

    The remaining time is shown before each run. To see the rounds of each run too, add --set tracking.console=plain
    and --jobs 1. Finished runs in the folder are not repeated, and an interrupted run continues from its last
    checkpoint. So after an interruption, give the same command again.
    """
    from fedlab.errors import ConfigError
    from fedlab.studies.spec import load_spec

    spec = load_spec(source, over or (), seeds_in(seeds), trials=optuna, objective=objective)
    where = folder or Path("runs") / f"{'sweep' if spec.trials is None else 'search'}-{Path(source).stem}"
    metrics = tuple(dict.fromkeys(metric or ()))
    more: dict[str, Any] = {
        "overrides": [*(sets or ()), *shorthands(engine__name=engine, engine__workers=workers)],
        "quiet": True,
        "jobs": jobs,
        "command": command_line(ctx),
        "announce": typer.echo,
    }
    if spec.trials is None:
        if objective is not None:
            raise ConfigError("--objective", objective, "a search by Optuna", "add --optuna N, or use --metric")
        _sweep(spec, where, metrics, {**more, "keep_going": keep_going})
        return
    if metrics:
        raise ConfigError("--metric", [*metrics], "a sweep without --optuna", "--objective names the metric to improve")
    _search(spec, where, more)


def _sweep(spec: SweepSpec, folder: Path, metrics: tuple[str, ...], more: dict[str, Any]) -> None:
    """All of the grid."""
    from rich.console import Console

    from fedlab.report.grids import to_table
    from fedlab.report.values import plural
    from fedlab.studies.sweep import sweep as run_sweep

    done = run_sweep(spec, folder, metrics=metrics, **more)
    Console().print(to_table("Mean ± sample standard deviation of n runs", done.table(), left=len(spec.axes)))
    for path in done.files.values():
        typer.echo(f"written: {path}")
    if done.batch.failures:
        typer.echo(f"{plural(len(done.batch.failures), 'run')} failed", err=True)
        raise typer.Exit(FAILED)


def _search(spec: SweepSpec, folder: Path, more: dict[str, Any]) -> None:
    """The points that Optuna chooses."""
    from rich.console import Console

    from fedlab.report.grids import to_table
    from fedlab.studies.search import search

    found = search(spec, folder, **more)
    Console().print(to_table("Trials, by their mean on validation samples", found.table(), left=1 + len(spec.axes)))
    typer.echo(found.summary())
    for path in found.files.values():
        typer.echo(f"written: {path}")
