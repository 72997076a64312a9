"""Results on disk, so that workloads can be measured one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contest import Result
from benchmarks.work import Work


@dataclass(frozen=True)
class Measured:
    """One workload's results.

    Args:
        work: what was done.
        results: by contender.
        machine: where and when.
    """

    work: Work
    results: Mapping[str, Result]
    machine: str


def save(measured: Mapping[str, Measured], path: Path) -> None:
    """Write the results of all workloads."""
    path.write_text(json.dumps({name: asdict(found) for name, found in measured.items()}, indent=1), encoding="utf-8")


def load(path: Path) -> dict[str, Measured]:
    """What `save` wrote; nothing where there is no file."""
    if not path.is_file():
        return {}
    return {
        name: Measured(
            Work(**found["work"]),
            {contender: Result(**result) for contender, result in found["results"].items()},
            found["machine"],
        )
        for name, found in json.loads(path.read_text(encoding="utf-8")).items()
    }
