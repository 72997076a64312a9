"""`fedlab doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlab.cli.failures import FAILED

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also start Ray and run one small federated round.")] = False,
) -> None:
    """Check whether FedLab works on this machine, and say how to fix what does not.

    The exit code is 1 if FedLab cannot work here.
    """
    from fedlab.doctor import examine

    failed = 0
    for finding in examine(deep=deep):
        failed += finding.status == "fail"
        mark = typer.style(f"{finding.status:<5}", fg=_COLORS[finding.status], bold=True)
        typer.echo(f"{mark} {finding.subject:<12} {finding.text}")
        if finding.remedy:
            typer.echo(f"{'':<18} → {finding.remedy}")
    if failed:
        raise typer.Exit(FAILED)
