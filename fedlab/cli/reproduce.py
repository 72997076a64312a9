"""`fedlab reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.arguments import (
    EngineOption,
    KeepGoing,
    Plain,
    Quiet,
    Seeds,
    Source,
    Workers,
    parts,
    seeds_in,
    shorthands,
)
from fedlab.cli.failures import FAILED, UNDECIDED, command_line
from fedlab.errors import InputError


def reproduce(
    ctx: typer.Context,
    source: Source,
    seeds: Seeds = "",
    arms: Annotated[
        str, typer.Option(metavar="ARM,ARM,…", help="Run only these arms. An arm is one variant of the experiment.")
    ] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Folder for the runs and the outcome.", show_default="runs/reproduce-METHOD")
    ] = None,
    engine: EngineOption = None,
    workers: Workers = None,
    keep_going: KeepGoing = False,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Write the outcome of the whole experiment beside the method's acceptance.yaml, as outcome.json.",
        ),
    ] = False,
    quiet: Quiet = False,
    plain: Plain = False,
) -> None:
    """Run a method's acceptance experiment and check its results against what is required.

    Finished runs in the folder are not repeated. The outcome covers all of them, including those of arms and seeds
    that are not named in this call. The exit code is 0 if every gate (a pass/fail check on results) is met, 1 if one
    is missed or a run failed, and 3 if none is missed but some could not be judged because runs are missing, e.g.
    with --arms.
    """
    from rich.console import Console

    from fedlab.report.grids import to_table
    from fedlab.studies.acceptance import load_acceptance
    from fedlab.studies.reproduce import reproduce as run_acceptance

    if record and (seeds or source.endswith((".yaml", ".yml"))):
        raise InputError(
            "--record", seeds or source, "a method's name and its own seeds", "leave --seeds out, and name a method"
        )
    outcome = run_acceptance(
        load_acceptance(source),
        place := folder or Path("runs") / f"reproduce-{Path(source).stem}",
        seeds=seeds_in(seeds),
        arms=parts(arms),
        overrides=shorthands(quiet, plain, engine__name=engine, engine__workers=workers),
        keep_going=keep_going,
        command=command_line(ctx),
        announce=typer.echo,
    )
    console = Console()
    console.print(to_table("Runs", outcome.arm_rows(), left=2))
    console.print(to_table("Required and seen", outcome.gate_rows(), left=2))
    for line in outcome.earlier():
        typer.echo(f"from an earlier call: {line}")
    if record:
        from fedlab.studies.recorded import record as write_outcome

        typer.echo(f"recorded: {write_outcome(outcome, source)}")
    typer.echo(f"outcome: {place / 'acceptance.json'}, {place / 'acceptance.md'}")
    for gate in outcome.undecided:
        typer.echo(f"not judged: {gate}", err=True)
    if outcome.failed:
        words = [verdict.word for verdict in outcome.verdicts]
        known = {
            "void": "the experiment is void: a condition without which it says nothing was not met",
            "missed": "at least one gate is missed",
        }
        typer.echo(next((known[word] for word in known if word in words), "at least one run failed"), err=True)
        raise typer.Exit(FAILED)
    if outcome.undecided:
        typer.echo("no gate is missed, but some could not be judged", err=True)
        raise typer.Exit(UNDECIDED)
    typer.echo("every gate is met")
