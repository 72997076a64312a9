"""`fedlab deploy`: the organizer's commands that make, start, show and end a federation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.arguments import Sets, Source
from fedlab.cli.help import Command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from fedlab.deployment.operate import FederationStatus
    from fedlab.deployment.project import Federation, Folder, Form

deploy_app = typer.Typer(
    no_args_is_help=True, help="Run federations whose sites keep their data on machines of their own."
)

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        "-f",
        help="The folder of the federation or site.",
        show_default="the current folder, or the folder deployment in it",
    ),
]
Processes = Annotated[
    bool | None,
    typer.Option(
        "--processes/--containers",
        help="Run as processes of this machine, or in containers.",
        show_default="containers",
    ),
]


def form_of(processes: bool | None) -> Form | None:
    """The form that ``--processes`` or ``--containers`` asks for; None if neither was given."""
    return None if processes is None else "processes" if processes else "containers"


@deploy_app.command(cls=Command)
def init(
    source: Source,
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make.")] = Path("deployment"),
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="NAME",
            help="A site that takes part. May be given several times.",
            show_default="all sites that the configuration lists",
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes of a demonstration.")] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="NAME|IP",
            help="Name or address under which sites reach this machine. May be given several times; sites are told "
            "the first one. Without it, all sites' nodes run on this machine.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port that sites connect to.", show_default="8443")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image of the containers.", show_default="fedlab:latest")] = None,
    processes: Processes = None,
    simulate_partition: Annotated[
        bool,
        typer.Option(
            "--simulate-partition",
            help="Make a demonstration: every node loads the configured data set and takes its own part of it.",
        ),
    ] = False,
    sets: Sets = None,
) -> None:
    """Make the folder of a federation from a configuration: certificates, keys of the nodes, files for the sites.

    If the folder is a federation's already, sites that are new in the configuration are added. Keys and certificates
    are never overwritten.
    """
    from fedlab.deployment import create
    from fedlab.experiment.configuration import configure

    asked = create.Asked(
        sites=tuple(sites or ()),
        nodes=nodes,
        hosts=tuple(hosts or ()),
        port=port,
        image=image,
        form=form_of(processes),
        simulate_partition=simulate_partition,
    )
    folder, new = create.init(configure(source, sets or ()), path, asked)
    settings = folder.federation()
    typer.echo(f"federation in {folder.path}: {_named('site', settings.sites)}, {settings.form}, {settings.address}")
    if len(new) < len(settings.sites):
        typer.echo(f"new: {', '.join(new) or 'nothing'}")
    if not settings.local:
        for site in new:
            typer.echo(f"hand over to the operator of {site}, over a channel that you trust: {folder.hand_over(site)}")
        typer.echo(f"open port {settings.port} of this machine to the sites; no site has to open one")
    typer.echo(f"next: fedlab deploy up --folder {folder.path}")


@deploy_app.command(cls=Command)
def up(
    image: Annotated[
        str | None, typer.Option(help="Image of the containers from now on.", show_default="the present one")
    ] = None,
    folder: FolderOption = None,
) -> None:
    """Start the SuperLink and all nodes of this folder; what runs already is left alone.

    In a site's folder, start that site's node.
    """
    from fedlab.deployment import operate
    from fedlab.deployment.project import Site, find

    place = find(folder)
    if image is not None:
        operate.use_image(place, image)
    settings = place.settings()
    for site in operate.up(place):
        typer.echo(f"registered: {site}")
    if isinstance(settings, Site):
        typer.echo(f"the node of {settings.site} is running and connects to {settings.superlink}")
    else:
        typer.echo(f"the SuperLink is up at {settings.address}; nodes connect within seconds")
        _warn_of_expiry(place)
    typer.echo("see how it stands with: fedlab deploy status")


@deploy_app.command(cls=Command)
def down(folder: FolderOption = None) -> None:
    """End all that runs on this machine for this folder. Keys, states and run folders stay."""
    from fedlab.deployment import operate
    from fedlab.deployment.project import find

    place = find(folder)
    ended = operate.down(place)
    what = "container" if place.settings().form == "containers" else "process"
    typer.echo(f"ended: {_count(what, ended)}" if ended else "nothing was running")


@deploy_app.command(cls=Command)
def status(folder: FolderOption = None) -> None:
    """Show whether the SuperLink is up, which sites are connected, how runs stand, and when certificates expire.

    In a site's folder, show how that site's node stands. The exit code is 1 if nothing is running.
    """
    from fedlab.deployment import operate
    from fedlab.deployment.project import Site, find

    place = find(folder)
    settings = place.settings()
    if isinstance(settings, Site):
        found = operate.programs(place)
        typer.echo(f"site {settings.site} in {place.path}: {settings.form}, connects to {settings.superlink}")
        _show_programs(found)
        if not found:
            typer.echo("the node is not running: start it with `fedlab deploy up`")
            raise typer.Exit(1)
        return
    shown = operate.status(place, settings)
    _show(place, settings, shown)
    if not shown.up:
        raise typer.Exit(1)


@deploy_app.command(cls=Command)
def renew(
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="NAME|IP", help="A further name or address of the server. May be given several times."
        ),
    ] = None,
    folder: FolderOption = None,
) -> None:
    """Write a new certificate of the server, before the old one expires or for further names.

    The authority stays the same, so that nothing changes for the sites. A server that is running uses the new
    certificate after `fedlab deploy down` and `fedlab deploy up`.
    """
    from fedlab.deployment import certificates, create
    from fedlab.deployment.project import find

    place = find(folder)
    create.renew(place, hosts or ())
    expiry, names = certificates.expiry(place.server_certificate), certificates.names(place.server_certificate)
    typer.echo(f"the certificate is valid until {expiry:%Y-%m-%d} for {', '.join(names)}")


@deploy_app.command(cls=Command)
def remove(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Name of the site.", show_default=False)],
    folder: FolderOption = None,
) -> None:
    """Take a site out of the federation: its node is refused from now on, and its keys are deleted."""
    from fedlab.deployment import create, operate
    from fedlab.deployment.project import find

    place = find(folder)
    create.known_site(place.federation(), site)
    operate.unregister(place, site)
    create.remove(place, site)
    typer.echo(f"removed: {site}; take it out of data.source.sites of the configurations too")


def _show(place: Folder, settings: Federation, shown: FederationStatus) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedlab.deployment import runs

    state = f"up at {settings.address}" if shown.up else "down: start it with `fedlab deploy up`"
    typer.echo(f"federation in {place.path}: {_named('site', settings.sites)}, {settings.form}")
    typer.echo(f"SuperLink: {state}")
    typer.echo(f"certificate: valid until {shown.expiry:%Y-%m-%d} for {', '.join(shown.names)}")
    _warn_of_expiry(place)
    _show_programs(shown.programs)
    if shown.sites:
        table = Table("site", "node", "since")
        for one in shown.sites:
            table.add_row(one.site, one.state, _local(one.since))
        Console().print(table)
    if shown.runs:
        known = runs.names(place)
        table = Table("run", "run folder", "state")
        for run in shown.runs:
            table.add_row(str(run["run-id"]), known.get(str(run["run-id"]), "–"), run["status"])
        Console().print(table)


def _show_programs(programs: Mapping[str, str]) -> None:
    for name, state in programs.items():
        typer.echo(f"{name}: {state}")


def _warn_of_expiry(place: Folder) -> None:
    from fedlab.deployment import certificates, operate

    expiry = certificates.expiry(place.server_certificate)
    if operate.expires_soon(expiry):
        typer.echo(
            f"warning: the server's certificate expires on {expiry:%Y-%m-%d}: run `fedlab deploy renew`", err=True
        )


def _local(time: datetime | None) -> str:
    return "" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _count(what: str, number: int) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def _named(what: str, names: Iterable[str]) -> str:
    listed = list(names)
    return f"{_count(what, len(listed))} ({', '.join(listed)})"
