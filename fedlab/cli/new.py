"""`fedlab new`: skeletons to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.help import Command

if TYPE_CHECKING:
    from fedlab.cli.skeletons import Kind

new_app = typer.Typer(no_args_is_help=True, help="Write a working skeleton of your own method, strategy or project.")

_Module = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name of the module: lower-case letters, digits and underscores, such as mean_teacher.",
        show_default=False,
    ),
]
_Folder = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name of the folder: lower-case letters, digits and underscores, such as smoothing_study.",
        show_default=False,
    ),
]


@new_app.command(cls=Command)
def method(name: _Module) -> None:
    """Write NAME.py with a method, a configuration that runs it and its test, into the current folder."""
    _write("method", name)


@new_app.command(cls=Command)
def strategy(name: _Module) -> None:
    """Write NAME.py with a strategy, a configuration that runs it and its test, into the current folder."""
    _write("strategy", name)


@new_app.command(cls=Command)
def project(name: _Folder) -> None:
    """Write the folder NAME with a configuration, a method, a source of data, their tests and a README."""
    _write("project", name)


def _write(kind: Kind, name: str) -> None:
    from fedlab.cli.skeletons import write

    written = write(kind, name, Path())
    for path in written:
        typer.echo(f"written: {path}")
    into = f"cd {name} && " if kind == "project" else ""
    config = "config.yaml" if kind == "project" else f"{name}.yaml"
    tests = "pytest" if kind == "project" else f"pytest test_{name}.py"
    typer.echo(f"run it:  {into}fedlab run {config}")
    typer.echo(f"test it: {into}{tests}")
