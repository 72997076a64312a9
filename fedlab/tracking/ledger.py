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


def rewind_ledger(path: Path, round: int) -> dict[int, tuple[int, int]]:
    """Drop the rows of later rounds, and those that are damaged, such as a last one cut short by a crash.

    Returns:
        Bytes (down, up) by round, as the rows that are kept say.
    """
    sums: dict[int, tuple[int, int]] = {}
    if not path.is_file():
        return sums
    lines, kept = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), list[str]()
    for line, row in zip(lines[1:], csv.reader(lines[1:]), strict=False):
        if _is_whole(row) and (number := int(row[0])) <= round:
            down, up = sums.get(number, (0, 0))
            sums[number] = down + int(row[3]), up + int(row[4])
            kept.append(line)
    write_atomic(path, "".join([",".join(COLUMNS) + "\n", *kept]))
    return sums


def _is_whole(row: list[str]) -> bool:
    return len(row) == len(COLUMNS) and all(row[place].isdecimal() for place in (0, 3, 4))
