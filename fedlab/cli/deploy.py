"""`fedlab submit`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlab.cli.arguments import Clients, Sets, Source


def submit(
    source: Source,
    superlink: Annotated[
        str,
        typer.Option(metavar="NAME", help="Name of the connection [superlink.NAME] in Flower's config.toml."),
    ],
    sets: Sets = None,
    clients: Clients = 0,
    simulate_partition: Annotated[
        bool,
        typer.Option(
            "--simulate-partition",
            help="For demonstrations: every node loads the configured data and takes its part of it.",
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait until the run ends.")] = False,
) -> None:
    """Run a federation on separate machines: send it to a running SuperLink and wait until it ends."""
    from fedlab.deployment import submit as deploy
    from fedlab.experiment.start import configure

    config = configure(source, sets or (), here=False)
    run = deploy.submit(config, superlink, clients=clients, simulate_partition=simulate_partition)
    follow = f"flwr log {run} {superlink}"
    typer.echo(f"run {run} · follow it with `{follow}` · stop it with `flwr stop {run} {superlink}`")
    if detach:
        return
    try:
        deploy.wait(run, superlink, lambda now: typer.echo(now.status), lambda told: typer.echo(told, err=True))
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"the run continues on the SuperLink; follow it with `{follow}`")
        raise
