"""`fedlab cluster up` and `fedlab cluster down`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fedlab.cli.help import Command

cluster_app = typer.Typer(no_args_is_help=True, help="Start or stop a Ray cluster on several machines.")

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="[USER@]HOST…",
        help="The machines; ssh must reach each of them without a password. The first one is the head of the cluster.",
        show_default=False,
    ),
]
Python = Annotated[
    str,
    typer.Option(
        "--python",
        metavar="PATH",
        help="The Python on the machines in whose environment FedLab is installed.",
        show_default="the path of the Python that runs this command",
    ),
]


@cluster_app.command(cls=Command)
def up(
    hosts: Names,
    python: Python = sys.executable,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the head, which the others join.")] = 6379,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs that each machine brings.", show_default="all that it has"),
    ] = None,
) -> None:
    """Start Ray on several machines and join them to one cluster.

    Nothing is started before all machines have been found to have the same versions of the software. Ray has no
    passwords: whoever reaches its ports can run programs on the machines, so they must be in a network that you trust.
    """
    from fedlab.deployment.hosts import Hosts

    address = Hosts(hosts, python).up(port, cpus)
    count = "1 machine" if len(hosts) == 1 else f"{len(hosts)} machines"
    typer.echo(f"cluster of {count} at {address} · use it with `fedlab run CONFIG --engine ray --address {address}`")


@cluster_app.command(cls=Command)
def down(hosts: Names, python: Python = sys.executable) -> None:
    """Stop Ray on several machines. All that this user runs with Ray there ends."""
    from fedlab.deployment.hosts import Hosts

    Hosts(hosts, python).down()
    typer.echo(f"Ray is stopped on {', '.join(hosts)}")
