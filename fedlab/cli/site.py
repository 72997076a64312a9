"""`fedlab deploy node`: the command of a site's operator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.deployed import deploy_app as deploy_app
from fedlab.cli.federation import Processes, form_of
from fedlab.cli.help import Command


@deploy_app.command(cls=Command)
def node(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file SITE.fedlab from the organizer.", show_default=False)
    ],
    path: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="The folder to make.", show_default="the site's name")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="Folder or file with this site's samples.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the source of this site's samples, e.g. data.name=npz, or the file of an asset of the "
            "method, e.g. assets.uni=/srv/uni. May be given several times; `fedlab list sources` shows what there is.",
        ),
    ] = None,
    processes: Processes = None,
    image: Annotated[str | None, typer.Option(help="Image of the containers.", show_default="the organizer's")] = None,
) -> None:
    """Prepare this machine as a site of a federation, from the file that the organizer has handed over.

    The data is loaded once, to say what was found and whether it fits what the sites have agreed on. Nothing is sent.
    """
    from fedlab.deployment import site

    made = site.prepare(file, path, data, sets or (), form_of(processes), image)
    for line in made.found:
        typer.echo(line)
    typer.echo(f"site {made.settings.site} in {made.folder.path}: {made.settings.form}, for {made.settings.superlink}")
    typer.echo(f"delete {file} now: it holds this site's key, which is in {made.folder.path / 'key'}")
    typer.echo(f"next: fedlab deploy up --folder {made.folder.path}")
