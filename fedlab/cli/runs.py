"""`fedlab show` and `fedlab report`, which read run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedlab.experiment.result import Run
    from fedlab.flowerapp.start import FlowerAppRun

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]


def show(path: RunPath) -> None:
    """Print how a run was configured, its results, and where its files are."""
    from rich.console import Console

    from fedlab.cli.flowerapp import show_app
    from fedlab.config.flowerapp import is_flower_app
    from fedlab.experiment.result import load
    from fedlab.report.confusion import lowest_classes
    from fedlab.report.record import RunRecord
    from fedlab.report.tables import result_table

    record = RunRecord.open(path)
    if is_flower_app(record.config):
        show_app(record)
        return
    run = load(path)
    config = run.config
    for change in record.changes:
        typer.echo(f"warning: {change}")
    model = run.history.start.get("model", config.model.name)
    parts = (config.method.name, model, config.federation.strategy.name, f"seed {config.seed}")
    typer.echo(f"{run.path}: {', '.join(parts)}, {len(run.history.rounds)} of {config.federation.rounds} rounds")
    if command := run.history.start.get("command"):
        typer.echo(f"command: {command}")
    Console().print(result_table(run.history))
    if classes := lowest_classes(run.history):
        typer.echo(f"{'classes':<12} {classes}")
    for warning in run.history.warnings:
        typer.echo(f"{'alarm' if warning in run.history.alarms else 'warning'}: {warning}")
    for left in run.history.left_out:
        typer.echo(left.notice)
    for line in (*_probes(run), *_checkpoints(run)):
        typer.echo(line)
    for name, place in run.paths.items():
        if place.exists():
            typer.echo(f"{name:<12} {place}")


def report(
    path: RunPath,
    redraw: Annotated[
        bool,
        typer.Option(
            "--redraw", help="First draw the pictures and write the artifacts again, from the run's last checkpoint."
        ),
    ] = False,
    browse: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write the report of a run again from its files, and print where it is."""
    from fedlab.report import write_report
    from fedlab.storage.runfolder import RunFolder, telling_full_disk

    folder = RunFolder.open(path)
    if redraw:
        from fedlab.experiment.redraw import redraw as draw_again

        for warning in draw_again(path):
            typer.echo(f"warning: {warning}", err=True)
    with telling_full_disk(folder.path):
        write_report(folder.path)
    uri = folder.report.resolve().as_uri()
    typer.echo(f"report: {uri}")
    if browse and typer.launch(uri):
        typer.echo("no browser was found: open the address above", err=True)


def report_line(run: Run | FlowerAppRun) -> str:
    """Where the report of a run is, or how to write it if the configuration leaves it out."""
    if run.config.tracking.report:
        return f"report: {run.folder.report.resolve().as_uri()}"
    return f"run folder: {run.path}; `fedlab report {run.path}` writes a report"


def _probes(run: Run) -> list[str]:
    """The results of `fedlab probe`."""
    from fedlab.experiment.probing import earlier_probes
    from fedlab.report.values import metric_phrase, metric_value, plural

    lines = []
    results, damaged = earlier_probes(run)
    for result in results:
        told = ", ".join(f"{metric_phrase(name)} {metric_value(name, value)}" for name, value in result.values.items())
        whose = f"features of {result.part} after round {result.round}, on {result.data}"
        lines.append(f"{'probe':<12} {told}: {whose}, {result.basis}")
    if damaged:
        places = ", ".join(map(str, damaged[:10]))
        lines.append(f"warning: {plural(len(damaged), 'line')} of probes.jsonl cannot be read (line {places})")
    return lines


def _checkpoints(run: Run) -> list[str]:
    """The newest checkpoint that can be used, and those that cannot."""
    from fedlab.storage.checkpoint import newest_checkpoint

    found, unusable = newest_checkpoint(run.folder.checkpoints)
    warnings = [f"warning: broken checkpoint\n{error}" for error in unusable.values()]
    return [*warnings, "checkpoint   none can be used" if found is None else f"{'checkpoint':<12} {found}"]
