"""`fedlab run --flower-app`, and `fedlab show` for a run of a Flower app."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.errors import UNSET, ConfigError, ConfigErrors

if TYPE_CHECKING:
    from fedlab.flowerapp.start import FlowerAppRun
    from fedlab.report.record import RunRecord

FlowerApp = Annotated[
    Path | None,
    typer.Option(
        "--flower-app",
        metavar="FOLDER",
        help="Instead of METHOD|CONFIG: the folder of a Flower app, whose own ServerApp and ClientApp are run.",
    ),
]
AppClients = Annotated[
    int | None,
    typer.Option(
        "--clients",
        min=1,
        help="Number of clients of a Flower app, which Flower calls SuperNodes.",
        show_default="the number that its pyproject.toml names",
    ),
]
RunConfig = Annotated[
    list[str] | None,
    typer.Option(
        "--run-config",
        "-c",
        metavar="KEY=VALUE…",
        help="Values of a Flower app's own keys, as for `flwr run`: quoted pairs with spaces between, or a TOML file.",
    ),
]


def app_of(source: str | None, flower_app: Path | None) -> str | Path | None:
    """The Flower app that a command is to run: a folder, or the configuration of an earlier run of one.

    Args:
        source: what was given as METHOD|CONFIG.
        flower_app: what was given as ``--flower-app``.

    Returns:
        None if the command is to run a method.

    Raises:
        ConfigError: both were given, or neither.
    """
    if flower_app is not None:
        if source is not None:
            raise ConfigError("METHOD|CONFIG", source, "nothing beside --flower-app", "leave one of the two out")
        return flower_app
    if source is None:
        fix = "e.g. fedlab run fedlgd; `fedlab list methods` names the methods"
        expected = "a method's name, a YAML file, or --flower-app FOLDER is required"
        raise ConfigError("METHOD|CONFIG", UNSET, expected, fix)
    return source if _is_recorded_app(source) else None


def _is_recorded_app(source: str) -> bool:
    from fedlab.config import read_yaml
    from fedlab.config.flowerapp import is_flower_app

    try:
        return source.endswith((".yaml", ".yml")) and is_flower_app(read_yaml(source))
    except ConfigErrors:  # told where it is read as the configuration of a method
        return False


def run_flower_app(
    app: str | Path,
    overrides: Sequence[str],
    clients: int | None,
    run_config: Sequence[str],
    command: str,
    *,
    rounds: int | None,
    until: int | None,
) -> FlowerAppRun:
    """Run a Flower app.

    Args:
        app: what `app_of` returned.
        overrides: ``dotted.key=value`` strings.
        clients: number of clients.
        run_config: values of the app's own keys.
        command: how to repeat the run.
        rounds: what was given as ``--rounds``.
        until: what was given as ``--until``.

    Raises:
        ConfigError: one of the last two was given.
    """
    from fedlab.flowerapp.start import run_app

    for option, value in (("--rounds", rounds), ("--until", until)):
        if value is not None:
            expected = "not given with --flower-app: the app has its own loop, and a key of its own for its rounds"
            fix = f"e.g. --run-config 'num-server-rounds={value}'; its pyproject.toml has the key's name"
            raise ConfigError(option, value, expected, fix)
    return run_app(app, clients=clients, run_config=run_config, overrides=overrides, command=command)


def no_flower_options(clients: int | None, run_config: Sequence[str] | None) -> None:
    """Refuse options that only a Flower app has.

    Raises:
        ConfigError: one of them was given.
    """
    for option, value, fix in (
        ("--clients", clients, "clients of a method: --set 'data.partition=[{name: iid, clients: N}]'"),
        ("--run-config", run_config, "keys of a method: --set KEY=VALUE"),
    ):
        if value:
            raise ConfigError(option, value, "given together with --flower-app only", fix)


def show_app(record: RunRecord) -> None:
    """Print what was run, its results, and where its files are.

    Args:
        record: of a run of a Flower app.
    """
    from rich.console import Console

    from fedlab.config.flowerapp import FLOWER_APP
    from fedlab.flowerapp.start import LOG
    from fedlab.report.tables import result_table

    history, folder = record.history, record.folder
    for change in record.changes:
        typer.echo(f"warning: {change}")
    app, done, planned = record.setting(FLOWER_APP) or {}, len(record.rounds), record.rounds_planned
    parts = (f"Flower app {app.get('name')} in {app.get('path')}", f"{app.get('clients')} clients")
    rounds = f"{done} of {planned} rounds" if planned else f"{done} rounds"
    typer.echo(f"{folder.path}: {', '.join(parts)}, seed {record.setting('seed')}, {rounds}")
    if command := history.start.get("command"):
        typer.echo(f"command: {command}")
    Console().print(result_table(history))
    for warning in history.warnings:
        typer.echo(f"{'alarm' if warning in history.alarms else 'warning'}: {warning}")
    for left in history.left_out:
        typer.echo(left.notice)
    places = {"config": folder.config, "events": folder.events, "metrics": folder.metrics, "log": folder.path / LOG}
    for name, place in {**places, "arrays": folder.artifacts, "report": folder.report}.items():
        if place.exists():
            typer.echo(f"{name:<12} {place}")
