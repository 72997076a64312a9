"""The communication ledger as a table: a row for every round, client and exchange group."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from fedlab.storage.runfolder import write_atomic
from fedlab.tracking.table import CsvSink
from fedlab.tracking.tracker import Event

COLUMNS = ("round", "client", "group", "down", "up", "raw_up")


class LedgerSink(CsvSink):
    """Writes the rows of the ledger to a file."""

    columns = COLUMNS

    def rows_of(self, event: Event) -> Sequence[Sequence[object]]:
        return [[event["round"], *row] for row in event["rows"]] if event["event"] == "ledger" else []


def rewind_ledger(path: Path, round: int) -> None:
    """Drop the rows of later rounds, and a last one cut short by a crash."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line, row in zip(lines[1:], csv.reader(lines[1:]), strict=False) if _until(row, round)]
    write_atomic(path, "".join([",".join(COLUMNS) + "\n", *kept]))


def _until(row: list[str], round: int) -> bool:
    return len(row) == len(COLUMNS) and row[0].isdecimal() and int(row[0]) <= round
