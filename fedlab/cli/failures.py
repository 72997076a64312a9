"""The message and the exit code of a command that fails."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from fedlab.errors import ConfigErrors, FedLabError, InputError

if TYPE_CHECKING:
    import click

INPUT, FAILED, UNDECIDED, INTERRUPTED = 2, 1, 3, 130
_ARGUMENTS = "fedlab.arguments"


class Commands(TyperGroup):
    """The group of all commands. It prints FedLab's own errors as a message on stderr, and others with a traceback.

    Exit codes: 2 the input was wrong, 1 a run failed after it had begun or a gate was missed, 3 some gates could not be
    judged, 130 Ctrl-C, SIGTERM or SIGHUP. ``FEDLAB_DEBUG=1`` shows every traceback.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (FedLabError, KeyboardInterrupt) as problem:
            if os.environ.get("FEDLAB_DEBUG", "0") not in ("", "0"):
                raise
            notes = getattr(problem, "__notes__", [])
            if isinstance(problem, KeyboardInterrupt):
                _tell("\n" + " · ".join(["interrupted", *notes]))
                raise typer.Exit(INTERRUPTED) from None
            _tell("\n".join([_titled(str(problem)), *notes]))
            wrong = isinstance(problem, (InputError, ConfigErrors)) and not problem.in_run
            raise typer.Exit(INPUT if wrong else FAILED) from None


def command_line(ctx: typer.Context) -> str:
    """The command as it was typed, ready for a shell."""
    return shlex.join(["fedlab", *ctx.meta[_ARGUMENTS]])


def _tell(message: str) -> None:
    """Print the last words of a command, whose terminal may be closed; a further Ctrl-C changes nothing any more."""
    with contextlib.suppress(OSError, KeyboardInterrupt):
        typer.echo(message, err=True)


def _titled(message: str) -> str:
    return typer.style("error", fg="red", bold=True) + f": {message}"
