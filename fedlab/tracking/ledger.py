"""The communication ledger as a table: a row for every round, client and exchange group."""

from __future__ import annotations

import csv
from pathlib import Path

from fedlab.runfolder import write_atomic
from fedlab.tracking.tracker import Event

COLUMNS = ("round", "client", "group", "down", "up", "raw_up")


class LedgerSink:
    """Appends to `path`; a round's rows reach the operating system before the next event.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        if self._file.tell() == 0:
            self._writer.writerow(COLUMNS)
            self._file.flush()

    def write(self, event: Event) -> None:
        if event["event"] == "ledger":
            self._writer.writerows([event["round"], *row] for row in event["rows"])
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def rewind_ledger(path: Path, round: int) -> None:
    """Drop the rows of later rounds, and a last one cut short by a crash."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line, row in zip(lines[1:], csv.reader(lines[1:]), strict=False) if _until(row, round)]
    write_atomic(path, "".join([",".join(COLUMNS) + "\n", *kept]))


def _until(row: list[str], round: int) -> bool:
    return len(row) == len(COLUMNS) and row[0].isdecimal() and int(row[0]) <= round
