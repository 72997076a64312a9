"""`fedlab config check` and `fedlab config show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.arguments import Sets, Source
from fedlab.cli.help import Command

if TYPE_CHECKING:
    from fedlab.config import Config

config_app = typer.Typer(no_args_is_help=True, help="Check or show a configuration.")


@config_app.command(cls=Command)
def check(
    source: Source,
    sets: Sets = None,
    data: Annotated[
        bool,
        typer.Option("--data", help="Also load the data and do all that `fedlab run` does before workers start."),
    ] = False,
) -> None:
    """Report everything that is wrong with a configuration, and which data is missing and how to get it.

    With --data, the data is loaded and divided among the clients, the networks are built with their initial weights,
    and one client is trained on one batch in every stage of the method. `fedlab run` starts every configuration that
    passes this check. Nothing is written.
    """
    from fedlab.experiment.checks import left_out
    from fedlab.experiment.configuration import configure
    from fedlab.experiment.job import ready
    from fedlab.storage.runfolder import RunFolder

    config = configure(source, sets or ())
    if not data:
        _check_without_data(config)
        return
    job = ready(config)
    RunFolder.check(Path(config.tracking.folder), config.tracking.name, config.method.name, config.seed)
    for warning in job.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(f"data: {job.federated.num_clients} clients, {job.federated.num_classes} classes")
    for line in job.federated.held_back:
        typer.echo(line)
    for left in left_out(config, job.federated):
        typer.echo(left.notice)
    typer.echo("the configuration is valid: one client was trained on one batch as a trial")


def _check_without_data(config: Config) -> None:
    from fedlab.experiment.checks import resolve
    from fedlab.storage.runfolder import RunFolder
    from fedlab.storage.weights import check_weights

    resolved = resolve(config)
    check_weights(config.init)
    RunFolder.check(Path(config.tracking.folder), config.tracking.name, config.method.name, config.seed)
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}")
    if missing := resolved.source.missing():
        typer.echo("note: data is missing on this machine\n  " + missing.replace("\n", "\n  "))
    typer.echo("the configuration is valid as far as this can be known without the data")
    typer.echo("not checked: the data, its division among the clients, whether the networks fit it (use --data)")


@config_app.command(cls=Command)
def show(
    source: Source,
    sets: Sets = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print each key with its value, type, default and meaning instead.")
    ] = False,
) -> None:
    """Print a configuration with all defaults filled in, as YAML."""
    from fedlab.experiment.start import configure

    config = configure(source, sets or ())
    if not describe:
        typer.echo(config.to_yaml(), nl=False)
        return
    from rich.console import Console

    from fedlab.cli.describe import description

    Console().print(description(config), end="")
