"""`fedlab submit`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlab.cli.arguments import Sets, Source


def submit(
    source: Source,
    superlink: Annotated[
        str,
        typer.Option(metavar="NAME", help="A connection of Flower's config.toml, written there as [superlink.NAME]."),
    ],
    sets: Sets = None,
    clients: Annotated[
        int, typer.Option(min=0, help="Nodes to wait for before the run starts; 0: all clients of the partition.")
    ] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end of the run.")] = False,
) -> None:
    """Run a federation on real machines: submit it to a running SuperLink and wait for its end."""
    from fedlab.deployment import submit as deploy
    from fedlab.experiment.start import configure

    run = deploy.submit(configure(source, sets or (), here=False), superlink, clients=clients)
    follow = f"flwr log {run} {superlink}"
    typer.echo(f"run {run} · follow it with `{follow}` · stop it with `flwr stop {run} {superlink}`")
    if detach:
        return
    try:
        deploy.wait(run, superlink, lambda now: typer.echo(now.status))
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"the run goes on: `{follow}`")
        raise
