"""The command `fedlab`: one file per group of commands, assembled here."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fedlab.cli.catalogue import list_components
from fedlab.cli.cluster import cluster_app
from fedlab.cli.compare import compare
from fedlab.cli.configuration import config_app
from fedlab.cli.deploy import submit
from fedlab.cli.doctor import doctor
from fedlab.cli.failures import Commands
from fedlab.cli.help import Command
from fedlab.cli.new import new_app
from fedlab.cli.partition import partition
from fedlab.cli.probe import probe
from fedlab.cli.rehearse import rehearse
from fedlab.cli.reproduce import reproduce
from fedlab.cli.resume import resume
from fedlab.cli.run import run
from fedlab.cli.runs import report, show
from fedlab.cli.site import deploy_app
from fedlab.cli.sweep import sweep

app = typer.Typer(
    name="fedlab",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from fedlab._environment import DISTRIBUTION

        typer.echo(f"fedlab {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train and compare methods of federated learning, especially those with local distillation.

    Start with `fedlab run fedlgd`. If something does not work, `fedlab doctor` checks this machine.
    """


app.command(cls=Command)(run)
app.command(cls=Command)(resume)
app.command("list", cls=Command)(list_components)
app.command(cls=Command)(show)
app.command(cls=Command)(report)
app.command(cls=Command)(probe)
app.command(cls=Command)(sweep)
app.command(cls=Command)(compare)
app.command(cls=Command)(partition)
app.add_typer(new_app, name="new")
app.add_typer(config_app, name="config")
app.command(cls=Command)(rehearse)
app.command(cls=Command)(reproduce)
app.add_typer(deploy_app, name="deploy")
app.command(cls=Command)(submit)
app.add_typer(cluster_app, name="cluster")
app.command(cls=Command)(doctor)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="fedlab")
    except SystemExit as end:
        cluster = sys.modules.get("fedlab.engine.cluster")
        if cluster is not None and cluster.abandoned:  # the threads of a Ray that died must not choose the exit code
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
