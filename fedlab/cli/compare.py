"""`fedlab compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.arguments import Metrics


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Run folders.", show_default=False)],
    metric: Metrics = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write compare.md, compare.csv and the curves to.", show_default="nothing is written"
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="HTML file to write, with curves in common charts and the runs' pictures side by side; it needs no "
            "other files.",
            show_default="nothing is written",
        ),
    ] = None,
) -> None:
    """Compare runs: the keys that differ, the results side by side, and whether the weights are bitwise equal.

    Runs that differ only in the seed are shown as one row: mean ± sample standard deviation. Unfinished runs can be
    compared too.
    """
    from rich.console import Console

    from fedlab.errors import ConfigError
    from fedlab.report.grids import to_table
    from fedlab.studies.compare import compare as compare_runs

    found = compare_runs(runs, tuple(dict.fromkeys(metric or ())))
    console = Console()
    console.print(to_table("Runs", found.runs(), left=2))
    if found.differing:
        console.print(to_table("Keys that differ", found.settings(), left=1 + len(found.groups)))
    else:
        typer.echo("the configurations do not differ, except in the seed")
    console.print(to_table("Results, with the difference to A", found.results()))
    typer.echo(found.equal_weights())
    if note := found.other_code():
        typer.echo(note)
    if out is not None:
        try:
            written = found.write(out)
        except OSError as error:
            raise ConfigError("--out", str(out), "a folder that can be written to", str(error)) from error
        for path in written:
            typer.echo(f"written: {path}")
    if html is not None:
        try:
            typer.echo(f"written: {found.write_page(html)}")
        except OSError as error:
            raise ConfigError("--html", str(html), "a file that can be written", str(error)) from error
