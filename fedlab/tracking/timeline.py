"""What each worker did and when, in the trace format of Chrome; open the file in Perfetto or chrome://tracing."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from fedlab.storage.runfolder import write_atomic
from fedlab.tracking.tracker import Event

_SERVER, _WORKERS = 1, 2
_MOST = 250_000  # clients' spans in a file: viewers take some hundred megabytes
_BEGIN, _END = "[\n", "\n]\n"


class TimelineSink:
    """Appends to `path`: a lane of the server's phases, one for each worker, and the workers' idle shares by phase.

    Args:
        path: the file; if it exists, new entries follow the old ones.
    """

    def __init__(self, path: Path) -> None:
        before = _readable(path)
        write_atomic(path, _BEGIN + before)
        self._file = path.open("a", encoding="utf-8")
        self._first, self._left = not before, _MOST - before.count("\n")
        self._busy: defaultdict[int, float] = defaultdict(float)
        self._workers: set[int] = set()
        self._round = 0
        for process, name in ((_SERVER, "server"), (_WORKERS, "workers")):
            self._put(ph="M", name="process_name", pid=process, args={"name": name})

    def write(self, event: Event) -> None:
        match event["event"]:
            case "phase_start":
                self._round = event["round"]
                self._busy.clear()
            case "work":
                for worker, client, kind, began, seconds in event["spans"]:
                    self._work(worker, client, kind, began, seconds)
                self._file.flush()
            case "phase_end":
                self._phase(event["phase"], event["round"], event["time"] - event["seconds"], event["seconds"])
                self._file.flush()

    def close(self) -> None:
        self._file.write(_END)
        self._file.close()

    def _work(self, worker: int, client: int, kind: str, began: float, seconds: float) -> None:
        self._busy[worker] += seconds
        if worker not in self._workers:
            self._workers.add(worker)
            self._put(ph="M", name="thread_name", pid=_WORKERS, tid=worker, args={"name": f"worker {worker}"})
        if self._left > 0:
            self._left -= 1
            self._span(f"client {client}", kind, _WORKERS, worker, began, seconds, round=self._round)

    def _phase(self, phase: str, round: int, began: float, seconds: float) -> None:
        self._span(phase, "phase", _SERVER, 0, began, seconds, round=round)
        if self._busy and seconds > 0:
            idle = {f"worker {w}": _share(1 - self._busy[w] / seconds) for w in sorted(self._workers)}
            self._put(ph="C", name="idle share", pid=_WORKERS, ts=_micro(began), args=idle)
            self._put(ph="C", name="idle share", pid=_WORKERS, ts=_micro(began + seconds), args=dict.fromkeys(idle, 0))
            self._busy.clear()

    def _span(
        self, name: str, kind: str, process: int, lane: int, began: float, seconds: float, **args: object
    ) -> None:
        self._put(
            ph="X", name=name, cat=kind, pid=process, tid=lane, ts=_micro(began), dur=_micro(seconds), args=args
        )  # fmt: skip

    def _put(self, **fields: Any) -> None:
        self._file.write(("" if self._first else ",\n") + json.dumps(fields))
        self._first = False


def _share(share: float) -> float:
    """A share in thousandths, at least 0: the phase and its spans are timed by different clocks."""
    return max(0.0, round(share, 3))


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)


def _readable(path: Path) -> str:
    """The events of a file, without a last one cut short by a crash."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace").removeprefix(_BEGIN).removesuffix(_END)
    lines = text.split(",\n")
    try:
        json.loads(lines[-1])
    except ValueError:
        lines.pop()
    return ",\n".join(lines)
