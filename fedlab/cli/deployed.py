"""`fedlab deploy run`, `resume` and `stop`: runs in a federation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.arguments import Clients, Plain, Quiet, Sets, TotalRounds
from fedlab.cli.federation import FolderOption
from fedlab.cli.federation import deploy_app as deploy_app
from fedlab.cli.help import Command

if TYPE_CHECKING:
    from fedlab.deployment.project import Folder
    from fedlab.deployment.runs import Submitted

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Name of the run folder, its path, or Flower's id of the run.", show_default=False
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Do not wait until the run ends.")]


@deploy_app.command(cls=Command)
def run(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD|CONFIG",
            help="A method's name (see `fedlab list methods`) or a YAML file.",
            show_default=False,
        ),
    ] = None,
    sets: Sets = None,
    clients: Clients = 0,
    detach: Detach = False,
    follow: Annotated[
        str | None,
        typer.Option("--follow", metavar="RUN", help="Submit nothing, and show the progress of a run instead."),
    ] = None,
    simulate_partition: Annotated[
        bool,
        typer.Option(
            "--simulate-partition",
            help="Insist on a demonstration, in which every node takes its own part of the configured data set.",
        ),
    ] = False,
    quiet: Quiet = False,
    plain: Plain = False,
    folder: FolderOption = None,
) -> None:
    """Run a federation on its sites, show the progress, and fetch the run folder.

    The exit code is 0 only if the run completed. Ctrl-C does not end the run.
    """
    from fedlab.deployment import runs
    from fedlab.deployment.project import find
    from fedlab.errors import UNSET, ConfigError

    place = find(folder)
    if (source is None) == (follow is None):
        value = UNSET if source is None else source
        raise ConfigError("METHOD or CONFIG", value, "either a configuration to run, or --follow RUN")
    if source is None:
        submitted = runs.find(place, str(follow))
    else:
        submitted = runs.start(place, source, sets or [], clients=clients, simulate_partition=simulate_partition)
        typer.echo(f"submitted as run {submitted.run}: {submitted.name}", err=True)
    _watch(place, submitted, detach, quiet, plain)


@deploy_app.command(cls=Command)
def resume(
    run: RunName,
    rounds: TotalRounds = None,
    detach: Detach = False,
    quiet: Quiet = False,
    plain: Plain = False,
    folder: FolderOption = None,
) -> None:
    """Continue a run from its last complete checkpoint, for example after the server has died.

    The result is exactly that of a run that was never stopped.
    """
    from fedlab.deployment import runs
    from fedlab.deployment.project import find

    place = find(folder)
    submitted = runs.resume(place, runs.find(place, run), rounds)
    typer.echo(f"submitted as run {submitted.run}: {submitted.name} goes on", err=True)
    _watch(place, submitted, detach, quiet, plain)


@deploy_app.command(cls=Command)
def stop(run: RunName, folder: FolderOption = None) -> None:
    """Stop a run. `fedlab deploy resume` can continue it."""
    from fedlab.deployment import operate, runs
    from fedlab.deployment.project import find

    place = find(folder)
    submitted = runs.find(place, run)
    operate.connection(place).stop(submitted.run)
    typer.echo(f"stopped: {submitted.name}; continue it with `fedlab deploy resume {submitted.name}`")


def _watch(place: Folder, submitted: Submitted, detach: bool, quiet: bool, plain: bool) -> None:
    """Show the progress of a run, and end as it ends."""
    from rich.console import Console

    from fedlab.cli.runs import report_line
    from fedlab.deployment import runs
    from fedlab.deployment.flower import DeploymentError
    from fedlab.experiment.result import load
    from fedlab.report.tables import result_table
    from fedlab.tracking.console import make_console

    ways = (
        f"follow it with `fedlab deploy run --follow {submitted.name}`",
        f"stop it with `fedlab deploy stop {submitted.name}`",
    )
    if detach:
        typer.echo(" · ".join(ways))
        return
    asked = submitted.config["tracking"]["console"]
    try:
        if absent := runs.not_connected(place):
            typer.echo(f"not connected now: {', '.join(absent)}; see `fedlab deploy status`", err=True)
        display = make_console("quiet" if quiet else "plain" if plain else asked)
        ended, missed = runs.follow(place, submitted, display, lambda sentence: typer.echo(sentence, err=True))
    except DeploymentError as gone:
        for note in (
            "start it again with `fedlab deploy up`: the run goes on if its server has not ended meanwhile",
            ways[0],
            f"continue it with `fedlab deploy resume {submitted.name}` if it has ended",
        ):
            gone.add_note(note)
        raise
    except KeyboardInterrupt as stopped:
        for note in ("the run continues", *ways):
            stopped.add_note(note)
        raise
    path = runs.fetch(place, submitted.name)
    if missed:
        typer.echo(f"{missed} events were not shown here; the run folder has them all", err=True)
    if path is not None:
        finished = load(path)
        Console().print(result_table(finished.history))
        typer.echo(report_line(finished))
    ended.refuse_failure(submitted.run)
