"""`fedlab config check` and `fedlab config show`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlab.cli.arguments import Sets, Source

config_app = typer.Typer(no_args_is_help=True, help="Check or show a configuration.")


@config_app.command()
def check(
    source: Source,
    sets: Sets = None,
    data: Annotated[bool, typer.Option("--data", help="Load the data too and try the partition.")] = False,
) -> None:
    """Find everything that is wrong with a configuration; says what data is missing and how to get it."""
    from fedlab.check import check_config, check_data, left_out
    from fedlab.data.sources import build_source
    from fedlab.experiment import configure

    config = configure(source, sets or ())
    for warning in check_config(config):
        typer.echo(f"warning: {warning}")
    if data:
        federated = check_data(config)
        typer.echo(f"data: {federated.num_clients} clients, {federated.num_classes} classes")
        for warning in federated.warnings:
            typer.echo(f"warning: {warning}")
        for left in left_out(config, federated):
            typer.echo(left.notice)
    elif missing := build_source(config.data.source).missing():
        typer.echo("note: data is missing on this machine\n  " + missing.replace("\n", "\n  "))
    typer.echo("the configuration is valid")


@config_app.command()
def show(
    source: Source,
    sets: Sets = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Every key with value, type, default and meaning instead.")
    ] = False,
) -> None:
    """Print a configuration with every default spelled out, as YAML."""
    from fedlab.experiment import configure

    config = configure(source, sets or ())
    if not describe:
        typer.echo(config.to_yaml(), nl=False)
        return
    from rich.console import Console

    from fedlab.cli.describe import description

    Console().print(description(config), end="")
