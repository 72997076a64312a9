"""`fedlab rehearse`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedlab.cli.arguments import Engine, EngineOption, Sets, Source, Workers, parts, shorthands


def rehearse(
    source: Source,
    sets: Sets = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Training samples of all clients together, if the data is not on this machine."),
    ] = None,
    test_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Test samples of all clients together, if the data is not on this machine."),
    ] = None,
    classes: Annotated[
        int, typer.Option(min=1, help="Classes, or identities, of data that is not on this machine.")
    ] = 10,
    domains: Annotated[
        int, typer.Option(min=1, help="Domains, or people or sites, of data that is not on this machine.")
    ] = 4,
    held: Annotated[
        str,
        typer.Option(metavar="NAME,NAME,…", help="Sets that the server holds, if only the missing data would say it."),
    ] = "",
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="Memory that the rehearsal may take; it is ended before it takes more.",
            show_default="nine tenths of what is free",
        ),
    ] = None,
    engine: EngineOption = None,
    workers: Workers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the result in the folder of the method, for `fedlab list methods`.")
    ] = False,
) -> None:
    """Try a configuration at its full size, and tell what the whole run would take on this machine.

    Data and weights that are not on this machine are replaced by random ones, so no data set is needed. One client
    takes one step in every stage of the method, the server averages once, and one client is evaluated, all in a process
    of its own. The result tells parameters, peak memory of a worker and of the server, seconds of a step and bytes of a
    round. What is computed from these is shown apart from what was measured. If memory does not suffice, this is said
    before anything is built, or the rehearsal is ended in time. Nothing is written, except by --record.
    """
    from fedlab.errors import InputError, MachineError
    from fedlab.experiment.configuration import configure
    from fedlab.experiment.rehearse import Reality
    from fedlab.experiment.rehearse import rehearse as carry_out
    from fedlab.report.rehearsal import lines
    from fedlab.studies.rehearsed import record as keep

    if memory is not None and memory <= 0:
        raise InputError("--memory", memory, "a number of gigabytes above 0", "leave it out to use what is free")
    given = [*shorthands(engine__name=engine and Engine(engine).value, engine__workers=workers), *(sets or ())]
    reality = Reality(samples, test_samples, classes, domains, tuple(parts(held)))
    limit = None if memory is None else int(memory * 1e9)
    report = carry_out(configure(source, given), reality, limit, lambda phase: typer.echo(f"… {phase}", err=True))
    if as_json:
        typer.echo(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(lines(report)))
    if record:
        typer.echo(f"recorded in {keep(report, source, sets or ())}", err=True)
    if report["status"] != "rehearsed":
        taken = report["taken"] if report["status"] == "stopped" else report["estimated"]["rehearsal"]
        raise MachineError(
            "memory",
            f"{report['limit'] / 1e9:.2f} GB for the rehearsal",
            f"at least {taken / 1e9:.2f} GB, in the phase {report.get('phase', 'build')!r}",
            "lower training.batch_size or the size of the model, or use a machine with more memory",
        )
