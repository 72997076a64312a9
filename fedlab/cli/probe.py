"""`fedlab probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.runs import RunPath

if TYPE_CHECKING:
    from fedlab.experiment.probing import ProbeResult


def probe(
    path: RunPath,
    kind: Annotated[str, typer.Option(help="Name of the probe; see `fedlab list probes`.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Samples to probe: a folder of pictures with one folder for each class, an .npz file, or a YAML file "
            "with a section data.",
            show_default="the data of the run",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="Part of the method whose features are probed.", show_default="the method's first"),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="Set of samples to fit on: train, or a set that the server holds.", show_default="train"),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Set of samples to score on.", show_default="test")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the labels.", show_default="label")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting of the probe, e.g. k=5. May be given several times."
        ),
    ] = None,
) -> None:
    """Measure what the features of a run contain, on its own data or on other data.

    A simple model is fitted to the features of one set of samples and scored on those of another. The weights are
    those of the run's last checkpoint. The result is appended to probes.jsonl in the run folder.
    """
    from fedlab.config import apply_overrides
    from fedlab.experiment.probing import probe_run
    from fedlab.experiment.result import load

    given = {"part": part, "fit": fit, "test": test, "label": label}
    settings = {
        **apply_overrides({}, sets or ()),
        **{name: value for name, value in given.items() if value is not None},
    }
    run = load(path)
    _tell(probe_run(run, kind, settings, data))
    typer.echo(f"appended to {run.folder.probes}")


def _tell(result: ProbeResult) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedlab.report.values import metric_label, metric_value

    title = f"Features of {result.part} after round {result.round}, on {result.data}"
    table = Table("probe", "value", title=Text(title), title_justify="left", title_style="bold", min_width=40)
    for metric, value in result.values.items():
        table.add_row(Text(metric_label(metric)), metric_value(metric, value))
    Console().print(table)
    typer.echo(result.basis)
