"""A table with one row for every number of a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedlab.storage.runfolder import telling_full_disk
from fedlab.tracking.history import SCOPES
from fedlab.tracking.tracker import Event

COLUMNS = ("round", "scope", "metric", "value")


class Row(NamedTuple):
    """One number.

    Args:
        round: when; 0 is before the first round.
        scope: ``mean``, ``pooled``, ``unseen``, ``server``, ``strategy`` or a client's name for evaluation metrics;
            ``train`` and ``server`` for what they logged; ``privacy``, ``bytes`` and ``seconds``.
        metric: name of a metric, a direction (``down``, ``up``, ``model/down``; ``raw_up``
            is before compression) or a phase.
        value: the number; NaN if it was not finite.
        evaluated: whether it comes from an evaluation.
    """

    round: int
    scope: str
    metric: str
    value: float
    evaluated: bool = False

    @property
    def tag(self) -> str:
        """Name by which related charts are shown side by side, such as one evaluation metric in all its scopes."""
        return f"{self.metric}/{self.scope}" if self.evaluated else f"{self.scope}/{self.metric}"


def rows(event: Event) -> Iterator[Row]:
    """The numbers in an event."""
    match event["event"]:
        case "phase_end":
            yield Row(event["round"], "seconds", event["phase"], event["seconds"])
        case "prepared":
            yield from _rows(0, "bytes", {"down": event["bytes_down"], "up": event["bytes_up"]})
        case "round":
            round = event["round"]
            yield from _rows(round, "train", event["train"])
            yield from _rows(round, "server", event["server"])
            yield from _rows(round, "bytes", {"down": event["bytes_down"], "up": event["bytes_up"]})
            spent = event.get("privacy", {})
            yield from _rows(round, "privacy", {name: spent[name] for name in ("epsilon", "clip") if name in spent})
            if event.get("raw_up"):
                yield from _rows(round, "bytes", {"raw_up": sum(event["raw_up"].values())})
            for group, counted in event["bytes"].items():
                yield from _rows(round, "bytes", {f"{group}/{way}": number for way, number in counted.items()})
        case "evaluation" | "probed":
            scopes = {scope: event.get(scope, {}) for scope in SCOPES}
            for scope, values in [*scopes.items(), *event["clients"].items()]:
                yield from _rows(event["round"], scope, values, evaluated=True)


def _rows(round: int, scope: str, values: Mapping[str, Any], *, evaluated: bool = False) -> Iterable[Row]:
    for metric, value in values.items():
        yield Row(round, scope, metric, math.nan if value is None else value, evaluated)


class CsvSink:
    """Appends to `path`; every row reaches the operating system before the next event.

    Args:
        path: the file.
    """

    columns: Sequence[str] = COLUMNS

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        with telling_full_disk(self._folder):
            self._file = path.open("a", encoding="utf-8", newline="")
            self._writer = csv.writer(self._file, lineterminator="\n")
            if self._file.tell() == 0:
                self._writer.writerow(self.columns)
                self._file.flush()

    def write(self, event: Event) -> None:
        found = self.rows_of(event)
        if found:
            with telling_full_disk(self._folder):
                self._writer.writerows(found)
                self._file.flush()

    def rows_of(self, event: Event) -> Sequence[Sequence[object]]:
        """The rows that an event adds."""
        return [row[: len(COLUMNS)] for row in rows(event)]

    def close(self) -> None:
        self._file.close()
