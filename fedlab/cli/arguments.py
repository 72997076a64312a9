"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from fedlab.errors import ConfigError


class Engine(StrEnum):
    """Engines that can be asked for."""

    RAY = "ray"
    INLINE = "inline"
    FLOWER = "flower"


def _methods(incomplete: str) -> list[str]:
    """Built-in methods, found without importing them: completion must be quick."""
    import pkgutil

    import fedlab.methods

    return [m.name for m in pkgutil.iter_modules(fedlab.methods.__path__) if m.name.startswith(incomplete)]


_SOURCE = typer.Argument(
    metavar="METHOD|CONFIG",
    help="A method's name (see `fedlab list methods`) or a YAML file.",
    autocompletion=_methods,
    show_default=False,
)
Source = Annotated[str, _SOURCE]
OptionalSource = Annotated[str | None, _SOURCE]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the configuration, e.g. training.lr=0.1. May be given several times.",
    ),
]
Seeds = Annotated[str, typer.Option("--seeds", metavar="N,N,…", help="Seeds to use instead of those in the file.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Metric to show, e.g. loss, or server.miou for a metric on the server's own data. May be given several "
        "times.",
        show_default="the metric that the reports of the runs show first",
    ),
]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Continue with the other runs when one fails.")]
EngineOption = Annotated[
    Engine | None, typer.Option("--engine", help="Where the clients run; short for --set engine.name=…")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Number of processes that train clients; short for --set engine.workers=…"),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="Address of a running Ray cluster; short for --set engine.address=…"
    ),
]
TotalRounds = Annotated[
    int | None,
    typer.Option("--rounds", min=1, help="New total number of rounds, including those already done."),
]
Clients = Annotated[
    int,
    typer.Option(
        "--clients", min=0, help="Number of nodes to wait for before the run starts; 0 = wait for all clients."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress; short for --set tracking.console=quiet")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Show progress as plain lines; short for --set tracking.console=plain")
]


def shorthands(quiet: bool = False, plain: bool = False, **values: object) -> list[str]:
    """Overrides for the options that were given.

    Args:
        quiet: no progress; wins over `plain`.
        plain: progress as plain lines.
        values: dotted key with ``__`` for the dot → value, None where the option was not given.
    """
    console = "quiet" if quiet else "plain" if plain else None
    given = {**values, "tracking__console": console}
    return [
        # as JSON, which is YAML: a name such as 2024 must stay text
        f"{key.replace('__', '.')}={json.dumps(value, ensure_ascii=False)}"
        for key, value in given.items()
        if value is not None
    ]


def parts(text: str) -> list[str]:
    """Words separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def seeds_in(text: str) -> list[int]:
    """The numbers given to ``--seeds``.

    Raises:
        ConfigError: something else than whole numbers.
    """
    for part in parts(text):
        if not (part.isascii() and part.isdecimal()):
            raise ConfigError("--seeds", part, "whole numbers from 0, separated by commas", "e.g. --seeds 0,1,2")
    return [int(part) for part in parts(text)]
