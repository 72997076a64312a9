"""The report of a run: one HTML page that needs no other files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedlab.errors import DiskFullError
from fedlab.report import costs, sections
from fedlab.report.confusion import classes_section
from fedlab.report.earlier import before_tables, earlier_tables
from fedlab.report.headline import headline
from fedlab.report.personalized import personalized_curves
from fedlab.report.pictures import pictures
from fedlab.report.privacy import privacy
from fedlab.report.record import RunRecord
from fedlab.report.results import results_table
from fedlab.report.templates import fill
from fedlab.report.values import moment, plural
from fedlab.storage.runfolder import RunFolder, set_aside, write_atomic

log = logging.getLogger(__name__)
T = TypeVar("T")


def report_quietly(folder: RunFolder) -> None:
    """Write the report and only log errors: they must not hide a run's own error or make a finished run fail."""
    try:
        write_report(folder.path)
    except (OSError, DiskFullError) as error:
        log.warning("the report could not be written: %s", str(error).splitlines()[0])
    except Exception:
        log.exception("the report could not be written; `fedlab report %s` tries again", folder.path)


def write_report(path: Path) -> Path:
    """Write ``report.html`` into a run folder, using only the files of that folder.

    Writing it again from the same files gives the same bytes. The run may be finished, failed, interrupted or still
    running; the report leaves out the sections for which there is no data.

    Args:
        path: the run folder.

    Returns:
        The report's path.

    Raises:
        CheckpointError: `path` is no run folder.
    """
    record = RunRecord.open(path)
    if record.folder.report.is_dir():
        set_aside(record.folder.report)
    write_atomic(record.folder.report, render(record))
    return record.folder.report


def render(record: RunRecord) -> str:
    """The report as HTML."""
    return fill("page.html.j2", _content(record))


def _subtitle(record: RunRecord) -> str:
    source, seed = record.setting("data", "source") or {}, record.setting("seed")
    data = source.get("dataset") or source.get("name")  # samples given in Python have a name of their own
    return ", ".join([f"on {data}"] * bool(data) + [f"seed {seed}"] * (seed is not None))


def _content(record: RunRecord) -> dict[str, Any]:
    unread: list[str] = []

    def part(name: str, build: Callable[[RunRecord], T]) -> T | None:
        """Build a part of the page. If its files are damaged, only this part is missing, and the page says so."""
        try:
            return build(record)
        except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            log.warning("%s: the report leaves out %s: %s: %s", record.folder.path, name, type(error).__name__, error)
            unread.append(name)
            return None

    start = record.history.start
    method = str(start.get("method") or record.setting("method", "name") or "FedLab run")
    events = record.history.events
    return {
        "title": str(start.get("title") or method),
        "subtitle": part("settings", _subtitle),
        "paper": str(start.get("paper") or ""),
        "name": record.folder.path.resolve().name,
        "status": record.status,
        "alarms": record.history.alarms,
        "with_alarms": f", with {plural(len(record.history.alarms), 'alarm')}" if record.history.alarms else "",
        "error": str(record.history.end.get("error") or "") if record.status == "failed" else "",
        "traceback": str(record.history.end.get("traceback") or "") if record.status == "failed" else "",
        "last_event": moment(events[-1].get("time")) if events else "",
        "rounds_done": part("rounds", lambda r: max(r.rounds, default=0)) or 0,
        "rounds_planned": part("rounds", lambda r: r.rounds_planned),
        "facts": part("settings", sections.facts),
        "headline": part("headline figures", headline),
        "last_round": part("evaluations", lambda r: max(r.evaluations, default=0)) or 0,
        "results": part("results", results_table),
        "held": part("results on the server’s data", sections.server_tables),
        "before": part("results before round 1", before_tables),
        "earlier": part("results of earlier rounds", earlier_tables),
        "curves": part("curves", lambda r: [*sections.curves(r), *personalized_curves(r)]),
        "by_class": part("results by class", classes_section),
        "privacy": part("privacy", privacy),
        "partition": part("partition", sections.partition),
        "pictures": part("pictures", pictures),
        "communication": part("communication", costs.communication),
        "times": part("time", costs.times),
        "measured": part("measured times", costs.measured),
        "warnings": part("warnings", lambda r: [*r.changes, *r.history.warnings]),
        "left_out": part("what was left out", sections.left_out),
        "repeat": part("how to repeat it", sections.repeat),
        "unread": unread,
    }
