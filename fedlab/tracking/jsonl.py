"""Events in a file, one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

from fedlab.storage.runfolder import telling_full_disk
from fedlab.tracking.tracker import Event

_NOT_KEPT = frozenset({"progress", "ledger", "work"})


def jsonl_line(event: Event) -> str:
    """An event as one line of the file."""
    return json.dumps(event, allow_nan=False, ensure_ascii=False) + "\n"


class JsonlSink:
    """Appends to `path`; every line reaches the operating system before the next event.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        with telling_full_disk(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        if event["event"] not in _NOT_KEPT:
            with telling_full_disk(self._folder):
                self._file.write(jsonl_line(event))
                self._file.flush()

    def close(self) -> None:
        self._file.close()
