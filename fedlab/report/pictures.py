"""The pictures that a method has drawn in a run."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from fedlab.report.blocks import Pictures, Shot
from fedlab.report.record import RunRecord
from fedlab.report.values import words
from fedlab.tracking import Event


def pictures(record: RunRecord) -> list[Pictures]:
    """The method's figures by name."""
    groups = []
    for name, by_round in _events(record).items():
        shots = [shot for event in by_round.values() if (shot := _shot(record, event))]
        if shots:
            groups.append(Pictures(words(name), str(next(iter(by_round.values()))["caption"]), shots))
    return groups


def last_pictures(record: RunRecord) -> dict[str, Pictures]:
    """The last picture of each of the method's figures, by the figure's name."""
    found = {}
    for name, by_round in _events(record).items():
        for event in reversed(by_round.values()):
            if (shot := _shot(record, event)) is not None:
                found[name] = Pictures(words(name), str(event["caption"]), [shot])
                break
    return found


def _events(record: RunRecord) -> Mapping[str, dict[int, Event]]:
    """The last event of every figure in every round, in the order of the rounds."""
    events: dict[str, dict[int, Event]] = defaultdict(dict)
    for event in record.history.of("figure"):
        events[event["name"]][event["round"]] = event
    return {name: dict(sorted(by_round.items())) for name, by_round in events.items()}


def _shot(record: RunRecord, event: Event) -> Shot | None:
    source = _picture(record.folder.path, event["path"])
    return (
        None if source is None else Shot(_when(event["round"], record), event["title"] or words(event["name"]), source)
    )


def _when(round: int, record: RunRecord) -> str:
    if round == 0:
        return "Before round 1"
    return f"After round {round}" + (", the last" if round == record.rounds_planned and round > 1 else "")


def _picture(folder: Path, name: str) -> str | None:
    """A PNG of this run as data URI; a path that leads out of the folder is not followed."""
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return None
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
