"""A run's events, read back."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab.errors import ConfigError, did_you_mean
from fedlab.storage import renamed
from fedlab.tracking.frames import FIRST, rows
from fedlab.tracking.left_out import LeftOut
from fedlab.tracking.tracker import ALARM, Event

if TYPE_CHECKING:
    import pandas

SCOPES = ("mean", "pooled", "unseen", "server", "strategy", "validation", "validation_pooled")
"""Parts of an evaluation beside the single clients."""
_EXAMPLES = 4  # of damaged lines


@dataclass(frozen=True)
class History:
    """What happened in a run; each entry has the fields of its event, see `fedlab.tracking.tracker`.

    Args:
        events: in order.
    """

    events: Sequence[Event] = ()

    @classmethod
    def from_jsonl(cls, path: Path) -> History:
        """From an event file; empty where there is no file.

        A last line that a crash has cut short is as if it had not been begun. Other lines that are no events are
        counted in an event ``left_out`` of their own.
        """
        return cls(tuple(renamed.events(_read(path))))

    def until(self, round: int) -> History:
        """The history as it was when a round ended, without later rounds and without an end."""
        kept: list[Event] = []
        for event in self.events:
            if event["event"] == "run_end" or (isinstance(event.get("round"), int) and event["round"] > round):
                break
            kept.append(event)
        return History(tuple(kept))

    def of(self, kind: str) -> list[Event]:
        """All events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def start(self) -> Event:
        """The fields of ``run_start`` and ``federation``; empty if the run did not get that far."""
        merged: Event = {}
        for event in (*self.of("federation")[-1:], *self.of("run_start")[-1:]):
            merged |= event
        return merged

    @property
    def end(self) -> Event:
        """The fields of ``run_end``; empty if the run was killed or is still running."""
        found = self.of("run_end")
        return found[-1] if found else {}

    @property
    def stopped(self) -> Event:
        """Who has ended the run early, when and why (``by, round, reason``); empty if nobody has."""
        found = self.end.get("stopped")
        return found if isinstance(found, dict) else {}

    @property
    def rounds(self) -> list[Event]:
        """One entry per finished round."""
        return self.of("round")

    @property
    def last_round(self) -> int:
        """The last round that was finished; 0 if none was."""
        return max((event["round"] for event in self.rounds if isinstance(event.get("round"), int)), default=0)

    @property
    def evaluations(self) -> list[Event]:
        """One entry per evaluation."""
        return self.of("evaluation")

    @property
    def probed(self) -> Event:
        """What probes measured before round 1, with the fields of an evaluation; empty if there were none."""
        found = self.of("probed")
        return found[-1] if found else {}

    @property
    def warnings(self) -> list[str]:
        """Texts of all warnings."""
        return [str(event.get("message", "")) for event in self.of("warning")]

    @property
    def alarms(self) -> list[str]:
        """Texts of the warnings that put the result in doubt, each once."""
        found = [event for event in self.of("warning") if event.get("level") == ALARM]
        return list(dict.fromkeys(str(event.get("message", "")) for event in found))

    @property
    def left_out(self) -> list[LeftOut]:
        """What was there and was not used: each kind once, with the sum over the rounds."""
        found: dict[tuple[str, str, bool], LeftOut] = {}
        for event in self.of("left_out"):
            try:
                left = LeftOut.of(event)
                hash(left.kind)
            except (LookupError, TypeError):  # a damaged line, which lacks its fields
                continue
            before = found.get(left.kind)
            found[left.kind] = before + left if before and event.get("round") is not None else left
        return list(found.values())

    def series(self, metric: str, scope: str = "mean") -> list[tuple[int, float]]:
        """(round, value) of an evaluation metric.

        Args:
            metric: such as ``accuracy``.
            scope: one of `SCOPES`, or a client's name.
        """
        points = []
        for event in self.evaluations:
            values = event.get(scope, {}) if scope in SCOPES else event["clients"].get(scope, {})
            if values.get(metric) is not None:
                points.append((int(event["round"]), float(values[metric])))
        return points

    def frame(self, kind: str = "evaluations") -> pandas.DataFrame:
        """The history as a table of pandas, with one row for each measurement and a column for each value.

        Args:
            kind: ``evaluations``: a row for each round, scope and client, with the metrics. ``scope`` is ``client``, or
                one of `SCOPES`, where ``client`` is empty. ``unseen`` says whether the client never trains, and
                ``samples`` is how many samples (or queries) the values of a client stand on.
                ``rounds``: a row for each round, with seconds, payload bytes and what was logged, as ``train.ce``.
                ``clients``: a row for each client's training in a round, with what it logged.

        Raises:
            ConfigError: there is no such kind.
        """
        import pandas

        if kind not in FIRST:
            raise ConfigError("kind", kind, f"one of {', '.join(FIRST)}", did_you_mean(str(kind), FIRST))
        first = FIRST[kind]
        found = list(rows(self.events, kind, SCOPES))
        names = dict.fromkeys(name for row in found for name in row)
        return pandas.DataFrame(found, columns=[*first, *(name for name in names if name not in first)])

    def logged(self, name: str, side: str = "train") -> list[tuple[int, float]]:
        """(round, value) of what clients (``train``) or server (``server``) logged."""
        return [
            (int(event["round"]), float(event[side][name]))
            for event in self.rounds
            if event[side].get(name) is not None
        ]

    def bytes_total(self) -> tuple[int, int]:
        """Payload bytes (down, up) of the whole run."""
        counted = [*self.of("prepared"), *self.rounds]
        return sum(e["bytes_down"] for e in counted), sum(e["bytes_up"] for e in counted)

    def raw_up(self) -> int | None:
        """Payload bytes the uploads of the whole run had before compression; None where nothing was compressed."""
        if not any(e.get("raw_up") for e in self.rounds):
            return None
        before: int = sum(sum(e["raw_up"].values()) if e.get("raw_up") else e["bytes_up"] for e in self.rounds)
        queried: int = sum(e["bytes_up"] for e in self.of("prepared"))
        return before + queried

    def timings(self) -> dict[tuple[str, str], tuple[float, int]]:
        """What the method has measured: by name and place (``clients`` or ``server``), seconds in all and how often."""
        found: dict[tuple[str, str], tuple[float, int]] = {}
        for event in self.of("timing"):
            seconds, count = found.get(key := (str(event["name"]), str(event["where"])), (0.0, 0))
            found[key] = seconds + float(event["seconds"]), count + int(event["count"])
        return found

    def seconds_by_phase(self) -> dict[str, float]:
        """Seconds spent in each phase."""
        spent: dict[str, float] = defaultdict(float)
        for event in self.of("phase_end"):
            spent[event["phase"]] += event["seconds"]
        return dict(spent)


def _read(path: Path) -> list[Event]:
    if not path.is_file():
        return []
    events, damaged, number = list[Event](), list[int](), 0
    with path.open(encoding="utf-8", errors="replace") as file:  # a crash may have cut a character in two
        for number, line in enumerate(file, start=1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                events.append(event)
            else:
                damaged.append(number)
    if damaged[-1:] == [number]:
        damaged.pop()
    if damaged:
        why, fix = "they are no events", "what they said is missing wherever this run is shown: restore the file"
        places = tuple(f"line {place}" for place in damaged)
        left = LeftOut(f"lines of {path.name}", len(damaged), why, number, fix, places[:_EXAMPLES])
        # the first event, so that it stays when a run that goes on takes its history back to a round
        events.insert(0, {"event": "left_out", **left.fields()})
    return events
