"""A table with one row for each round and one column for each number, as spreadsheets and pandas read it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from fedlab.storage.runfolder import write_atomic
from fedlab.tracking.quantiles import readable_rows
from fedlab.tracking.tracker import Event
from fedlab.tracking.trackers.base import NumberSettings, RunTracker, TrackedRun

FILE, _ROUND = "rounds.csv", "round"


class WideCsv(RunTracker):
    """Writes rounds.csv into the run folder: one row for each round, one column for each number.

    The file ``metrics.csv``, which every run folder has, has one row for each number instead.
    """

    Settings = NumberSettings

    @property
    def without(self) -> str:
        return f"{FILE} is not written"

    def open(self, run: TrackedRun) -> None:
        self._path = run.folder.path / FILE
        self._columns: dict[str, None] = {_ROUND: None}  # in the order in which they came
        self._rows: dict[int, dict[str, str]] = {}
        self._place = 0  # byte at which the row of the last round begins
        if run.resumed:
            self._keep(self._path, run.resumed)
        self._write_all()

    def write(self, event: Event) -> None:
        found = list(readable_rows(event, self.settings.most_clients))
        if not found:
            return
        before, known = max(self._rows, default=-1), len(self._columns)
        for row in found:
            self._columns[row.tag] = None
            self._rows.setdefault(row.round, {_ROUND: str(row.round)})[row.tag] = repr(float(row.value))
        last = max(self._rows)
        if len(self._columns) > known or {row.round for row in found} != {last}:
            self._write_all()
            return
        with self._path.open("r+b") as file:  # of a long run the last row only
            if last > before:
                self._place = file.seek(0, io.SEEK_END)
            file.seek(self._place)
            file.truncate()
            file.write(self._lines([last]))

    def _keep(self, path: Path, last: int) -> None:
        """Read back the rounds up to `last`; those after it are repeated."""
        if not path.is_file():
            return
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            self._columns |= dict.fromkeys(reader.fieldnames or ())
            for row in reader:
                if (row.get(_ROUND) or "").isdecimal() and int(row[_ROUND]) <= last:
                    self._rows[int(row[_ROUND])] = {name: value for name, value in row.items() if name and value}

    def _write_all(self) -> None:
        *earlier, last = sorted(self._rows) or [-1]
        head = _line(self._columns) + self._lines(earlier)
        self._place = len(head)
        write_atomic(self._path, head + self._lines([last] if self._rows else []), durable=False)

    def _lines(self, rounds: Iterable[int]) -> bytes:
        return b"".join(_line(self._rows[round].get(name, "") for name in self._columns) for round in rounds)


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
